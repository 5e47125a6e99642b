// The results as cells. Only those in sight are elements: ten thousand stay as quick as ten.

const TINY = 96; // pixels of a side up to which pixels are shown as they are

/** What stands for a result: its small picture, else the picture itself, else what it is, in words. */
function frameOf(row) {
  const file = row.files[0], frame = make("div", { class: "frame" });
  const source = row.thumb ? address(`thumbnails/${row.thumb}`) : row.kind === "picture" ? address(file.file) : null;
  if (source !== null) {
    const isTiny = row.kind === "picture" && Math.max(...(file.shape || [TINY + 1]).slice(0, 2)) <= TINY;
    const picture = make("img", { src: source, alt: "", decoding: "async", draggable: "false", class: isTiny ? "tiny" : null });
    picture.addEventListener("error", () => picture.replaceWith(make("span", { class: "what" }, "not where it was")));
    frame.append(picture);
  } else if (row.kind === "clip") {
    frame.append(make("video", { src: `${address(file.file)}#t=0.1`, preload: "metadata", muted: true, tabindex: "-1" }));
  } else {
    frame.append(make("span", { class: "what" }, row.kind, make("br"), (file.shape || []).join(" × ")));
  }
  const mark = markOf(row);
  if (mark) frame.append(make("span", { class: "mark" }, mark));
  return frame;
}

/** In the corner: how long it plays, how many files there are. */
function markOf(row) {
  const file = row.files[0], parts = [];
  if (row.kind === "clip" && file.fps) parts.push(`▶ ${inSeconds(file.shape[0] / file.fps)}`);
  if (row.kind === "sound" && file.sampling_rate) parts.push(`♪ ${inSeconds(Math.max(...file.shape) / file.sampling_rate)}`);
  if (row.files.length > 1) parts.push(`${row.files.length} files`);
  return parts.join(" · ");
}

function cellOf(row, open) {
  const cell = make("button", { type: "button", class: "cell", title: String(titleOf(row)) },
    frameOf(row),
    make("span", { class: "caption" }, String(titleOf(row)), make("i", {}, ` · ${row.seed}`)));
  cell.addEventListener("click", () => open(row));
  return cell;
}

class Grid {
  constructor(place, open) {
    Object.assign(this, { place, open, rows: [], size: 176, cells: new Map(), at: 0 });
    addEventListener("scroll", () => this.draw(), { passive: true });
    new ResizeObserver(() => this.layout()).observe(place);
    place.addEventListener("keydown", (event) => this.press(event));
  }

  show(rows) {
    this.rows = rows;
    this.at = Math.min(this.at, Math.max(0, rows.length - 1));
    this.clear();
    this.layout();
  }

  resize(size) {
    this.size = size;
    this.clear();
    this.layout();
  }

  clear() {
    this.place.replaceChildren();
    this.cells.clear();
  }

  layout() {
    const gap = 12, width = this.place.clientWidth;
    if (!width) return;
    this.columns = Math.max(1, Math.floor((width + gap) / (this.size + gap)));
    this.wide = (width + gap) / this.columns - gap;
    this.step = [this.wide + gap, Math.round(this.wide + 40 + gap)];
    this.place.style.height = `${Math.ceil(this.rows.length / this.columns) * this.step[1]}px`;
    this.draw(true);
  }

  draw(moved = false) {
    if (!this.columns || this.place.offsetParent === null) return;
    const top = -this.place.getBoundingClientRect().top, more = 300; // a little beyond what is in sight
    const first = Math.max(0, Math.floor((top - more) / this.step[1])) * this.columns;
    const last = Math.min(this.rows.length, Math.ceil((top + innerHeight + more) / this.step[1]) * this.columns);
    for (const [index, cell] of this.cells) {
      if (index < first || index >= last) {
        if (cell.contains(document.activeElement)) continue; // the keyboard is there
        cell.remove();
        this.cells.delete(index);
      }
    }
    for (let index = first; index < last; index++) {
      let cell = this.cells.get(index);
      if (cell && !moved) continue;
      if (!cell) {
        cell = cellOf(this.rows[index], () => { this.at = index; this.open(index); });
        cell.setAttribute("role", "listitem");
        cell.setAttribute("aria-posinset", index + 1);
        cell.setAttribute("aria-setsize", this.rows.length);
        this.cells.set(index, cell);
        this.place.append(cell);
      }
      cell.tabIndex = index === this.at ? 0 : -1;
      cell.style.width = `${this.wide}px`;
      cell.style.height = `${this.step[1] - 12}px`;
      cell.style.transform = `translate(${(index % this.columns) * this.step[0]}px, ${Math.floor(index / this.columns) * this.step[1]}px)`;
    }
  }

  press(event) {
    const page = this.columns * Math.max(1, Math.floor(innerHeight / this.step[1]) - 1);
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.columns, ArrowUp: -this.columns, PageDown: page, PageUp: -page,
      Home: -this.rows.length, End: this.rows.length }[event.key];
    if (by === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.focus(Math.min(Math.max(this.at + by, 0), this.rows.length - 1));
  }

  focus(index) {
    this.cells.get(this.at)?.setAttribute("tabindex", "-1");
    this.at = index;
    const top = this.place.getBoundingClientRect().top + scrollY + Math.floor(index / this.columns) * this.step[1];
    const head = document.querySelector("header").offsetHeight + 12;
    if (top - head < scrollY) scrollTo({ top: top - head });
    else if (top + this.step[1] > scrollY + innerHeight) scrollTo({ top: top + this.step[1] - innerHeight });
    this.draw();
    const cell = this.cells.get(index);
    if (cell) { cell.tabIndex = 0; cell.focus({ preventScroll: true }); }
  }
}
