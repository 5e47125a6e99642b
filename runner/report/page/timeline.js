// Rows of intervals over time on a canvas, to move and zoom in.

const ROW = 15, HEAD = 24, GAP = 12, SIDE = 150; // pixels: of a row, of the axis, between two ranks, of the names

class Timeline {
  /** `groups`: {name, rows: [{name, colour, begin, length, text(index)}]}, times in microseconds, by their begin. */
  constructor(canvas, tip, groups, viewed) {
    Object.assign(this, { canvas, tip, groups, viewed, top: 0 });
    const rows = groups.flatMap((group) => group.rows);
    this.end = Math.max(1, ...rows.map((row) => row.begin.reduce((most, begin, i) => Math.max(most, begin + row.length[i]), 0)));
    this.start = Math.min(this.end - 1, ...rows.map((row) => row.begin[0] ?? Infinity));
    this.tall = HEAD + groups.reduce((sum, group) => sum + group.rows.length * ROW + GAP, 0);
    this.fit();
    new ResizeObserver(() => this.draw()).observe(canvas.parentElement);
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("pointerdown", (event) => this.hold(event));
    canvas.addEventListener("pointermove", (event) => this.point(event));
    canvas.addEventListener("pointerleave", () => { this.tip.hidden = true; });
    canvas.addEventListener("dblclick", (event) => this.zoom(0.4, event.offsetX));
    canvas.addEventListener("keydown", (event) => this.press(event));
  }

  fit() { [this.from, this.to] = [this.start, this.end]; this.draw(); }

  x(time) { return SIDE + ((time - this.from) / (this.to - this.from)) * (this.wide - SIDE); }

  time(x) { return this.from + ((x - SIDE) / (this.wide - SIDE)) * (this.to - this.from); }

  move(part) {
    const by = Math.min(Math.max((this.to - this.from) * part, this.start - this.from), this.end - this.to);
    this.from += by;
    this.to += by;
    this.draw();
  }

  zoom(factor, x = SIDE + (this.wide - SIDE) / 2) {
    const middle = this.time(Math.max(x, SIDE)), span = Math.max(5, (this.to - this.from) * factor);
    const part = (middle - this.from) / (this.to - this.from);
    this.from = Math.max(this.start, middle - span * part);
    this.to = Math.min(this.end, this.from + span);
    this.draw();
  }

  wheel(event) {
    const isAcross = Math.abs(event.deltaX) > Math.abs(event.deltaY) || event.shiftKey;
    if (event.ctrlKey || event.metaKey) this.zoom(Math.exp(event.deltaY * 0.004), event.offsetX);
    else if (isAcross) this.move((event.deltaX || event.deltaY) / this.wide);
    else if (this.tall > this.high) this.scroll(event.deltaY);
    else return; // the page scrolls
    event.preventDefault();
  }

  scroll(by) { this.top = Math.min(Math.max(0, this.top + by), this.tall - this.high); this.draw(); }

  hold(event) {
    this.canvas.setPointerCapture(event.pointerId);
    let last = [event.clientX, event.clientY];
    const drag = (moved) => {
      this.move((last[0] - moved.clientX) / (this.wide - SIDE));
      if (this.tall > this.high) this.scroll(last[1] - moved.clientY);
      last = [moved.clientX, moved.clientY];
    };
    this.canvas.addEventListener("pointermove", drag);
    this.canvas.addEventListener("pointerup", () => this.canvas.removeEventListener("pointermove", drag), { once: true });
  }

  press(event) {
    const act = {
      ArrowLeft: () => this.move(-0.2), ArrowRight: () => this.move(0.2), a: () => this.move(-0.2), d: () => this.move(0.2),
      "+": () => this.zoom(0.6), "=": () => this.zoom(0.6), w: () => this.zoom(0.6), "-": () => this.zoom(1 / 0.6), s: () => this.zoom(1 / 0.6),
      0: () => this.fit(), Home: () => this.move(-1e9), End: () => this.move(1e9),
      ArrowUp: () => this.scroll(-60), ArrowDown: () => this.scroll(60),
    }[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    act();
  }

  /** Each row with the height at which it lies. */
  *placed() {
    let y = HEAD - this.top;
    for (const group of this.groups) {
      for (const row of group.rows) { yield [group, row, y]; y += ROW; }
      y += GAP;
    }
  }

  draw() {
    this.wide = this.canvas.clientWidth;
    if (!this.wide) return;
    this.high = Math.min(this.tall, Math.max(240, innerHeight - 250));
    this.top = Math.min(this.top, Math.max(0, this.tall - this.high));
    const pen = prepared(this.canvas, this.wide, this.high), ink = { line: colour("--line"), dim: colour("--dim"), text: colour("--text"), ground: colour("--ground"), sunk: colour("--sunk") };
    pen.textBaseline = "middle";
    let before = null;
    for (const [, , y] of this.placed()) {
      pen.fillStyle = ink.sunk;
      pen.fillRect(SIDE, y, this.wide - SIDE, ROW - 1);
    }
    this.drawTicks(pen, ink.line, (x) => pen.fillRect(x, HEAD, 1, this.high));
    for (const [group, row, y] of this.placed()) {
      if (y > this.high || y + ROW < HEAD) { before = group; continue; }
      this.drawRow(pen, row, y);
      pen.fillStyle = ink.ground;
      pen.fillRect(0, y, SIDE, ROW);
      pen.textAlign = "left";
      if (group !== before) { pen.fillStyle = ink.text; pen.fillText(group.name, 0, y + ROW / 2, 70); }
      pen.fillStyle = ink.dim;
      pen.fillText(row.name, 74, y + ROW / 2);
      before = group;
    }
    this.drawAxis(pen, ink);
    this.viewed(this);
  }

  drawRow(pen, row, y) {
    pen.fillStyle = colour(row.colour);
    let last = -1; // of the pixels that are filled: thousands of blocks may lie on one
    for (let i = this.firstIn(row); i < row.begin.length && row.begin[i] < this.to; i++) {
      const left = Math.max(SIDE, this.x(row.begin[i])), right = Math.min(this.wide, this.x(row.begin[i] + row.length[i]));
      if (right < last || right < SIDE) continue;
      const wide = Math.max(right - left, 1);
      pen.globalAlpha = 0.92;
      pen.fillRect(left, y + 1, wide > 3 ? wide - 1 : wide, ROW - 3);
      pen.globalAlpha = 1;
      last = left + 0.5;
      if (wide > 18) this.drawText(pen, row, i, left, wide, y);
    }
  }

  drawText(pen, row, index, left, wide, y) {
    const fill = pen.fillStyle, whole = row.text(index, true);
    // Of `transformer_blocks.3` at least the 3; other names whole or not at all, unless there is room for most of it.
    const fits = pen.measureText(whole).width < wide - 8, text = fits || wide > 90 ? whole : whole.match(/\d+$/)?.[0] ?? "";
    pen.save();
    pen.beginPath();
    pen.rect(left, y, wide - 6, ROW);
    pen.clip();
    pen.fillStyle = "#fff";
    pen.textAlign = "left";
    pen.fillText(text, left + 5, y + ROW / 2);
    pen.restore();
    pen.fillStyle = fill;
  }

  drawAxis(pen, ink) {
    pen.fillStyle = ink.ground;
    pen.fillRect(0, 0, this.wide, HEAD - 2);
    pen.textAlign = "center";
    this.drawTicks(pen, ink.dim, (x, tick) => {
      if (x < this.wide - 24) pen.fillText(tick && tick < 1 ? inSeconds(tick) : sinceBegin(tick), Math.max(x, SIDE + 8), 10);
    });
  }

  drawTicks(pen, ink, each) {
    const [from, to] = [(this.from - this.start) / 1e6, (this.to - this.start) / 1e6];
    pen.fillStyle = ink;
    for (const tick of timeTicks(from, to, (this.wide - SIDE) / 110)) each(this.x(tick * 1e6 + this.start), tick);
  }

  /** The first that may reach into view: intervals of a row nest or overlap, so a little is looked back. */
  firstIn(row) {
    let [low, high] = [0, row.begin.length];
    const wanted = this.from - row.longest;
    while (low < high) { const middle = (low + high) >> 1; if (row.begin[middle] < wanted) low = middle + 1; else high = middle; }
    return low;
  }

  point(event) {
    const time = this.time(event.offsetX), slack = (this.to - this.from) / (this.wide - SIDE);
    for (const [group, row, y] of this.placed()) {
      if (event.offsetY < Math.max(y, HEAD) || event.offsetY >= y + ROW || event.offsetX < SIDE) continue;
      for (let i = this.firstIn(row), found = -1; ; i++) {
        const isOver = i >= row.begin.length || row.begin[i] > time + slack;
        if (!isOver && row.begin[i] + row.length[i] >= time - slack) found = i;
        if (!isOver) continue;
        if (found < 0) break;
        this.tip.replaceChildren(make("b", {}, row.text(found)), make("br"), `${inSeconds(row.length[found] / 1e6)} · ${group.name}, ${row.name}`);
        this.tip.hidden = false;
        this.tip.style.left = `${Math.min(event.offsetX + 14, this.wide - this.tip.offsetWidth - 8)}px`;
        this.tip.style.top = `${event.offsetY + 16}px`;
        return;
      }
    }
    this.tip.hidden = true;
  }
}

/** Of the time in view, the part in which something of the row was going on. */
function busy(row, timeline) {
  let [sum, until] = [0, timeline.from];
  for (let i = timeline.firstIn(row); i < row.begin.length && row.begin[i] < timeline.to; i++) {
    const end = Math.min(row.begin[i] + row.length[i], timeline.to), begin = Math.max(row.begin[i], until);
    if (end > begin) { sum += end - begin; until = end; }
  }
  return sum / (timeline.to - timeline.from);
}
