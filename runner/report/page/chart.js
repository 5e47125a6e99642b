// A chart over time on a canvas: curves or bars, with the values under the pointer.

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const HUES = ["--compute", "--move", "--wait", "--exchange", "--bad", "--accent", "--good", "--warm"];

/** The canvas in pixels of the screen, cleared; its context counts in pixels of the page. */
function prepared(canvas, width, height) {
  const scale = devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  pen.font = `11px ${getComputedStyle(document.body).fontFamily}`;
  return pen;
}

/** Round steps of an axis up to `most`: 1, 2 or 5 times a power of `base`'s tens. */
function ticksOf(from, to, number) {
  const rough = (to - from) / Math.max(1, number), power = 10 ** Math.floor(Math.log10(rough || 1));
  const step = [1, 2, 5, 10].find((times) => times * power >= rough) * power;
  const ticks = [];
  for (let at = Math.ceil(from / step) * step; at <= to + step * 1e-9; at += step) ticks.push(at);
  return ticks;
}

/** The same of seconds, in the steps that clocks have. */
function timeTicks(from, to, number) {
  const steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400];
  const rough = (to - from) / Math.max(1, number);
  if (rough < 1) return ticksOf(from, to, number);
  const step = steps.find((one) => one >= rough) ?? Math.ceil(rough / 86400) * 86400;
  const ticks = [];
  for (let at = Math.ceil(from / step) * step; at <= to; at += step) ticks.push(at);
  return ticks;
}

/** Seconds since the beginning, as an axis has them. */
function sinceBegin(seconds) {
  if (seconds < 60) return `${+seconds.toFixed(6)} s`;
  const [h, m, s] = [Math.floor(seconds / 3600), Math.floor((seconds % 3600) / 60), Math.round(seconds % 60)];
  return h ? `${h}:${String(m).padStart(2, "0")} h` : s ? `${m}:${String(s).padStart(2, "0")}` : `${m} min`;
}

class Chart {
  /** `series`: {name, times (seconds), values, colour}; `unit` turns a value into words; `level`: {value, name} or null. */
  constructor(figure, { series, unit, bars = 0, level = null }) {
    Object.assign(this, { figure, series, unit, bars, level, at: null, canvas: figure.querySelector("canvas") });
    if (series.length > 1 && series.length <= HUES.length) figure.querySelector("h2").append(this.legend());
    new ResizeObserver(() => this.draw()).observe(figure);
    this.canvas.addEventListener("pointermove", (event) => { this.at = event.offsetX; this.draw(); });
    this.canvas.addEventListener("pointerleave", () => { this.at = null; this.draw(); });
  }

  legend() {
    return make("span", { class: "legend" }, ...this.series.map((one) => {
      const swatch = make("i");
      swatch.style.background = `var(${one.colour})`;
      return make("span", {}, swatch, one.name);
    }));
  }

  draw() {
    const width = this.canvas.clientWidth, height = 180;
    if (!width) return;
    const pen = prepared(this.canvas, width, height), box = { left: 62, right: width - 18, top: 8, bottom: height - 22 };
    const all = this.series.flatMap((one) => one.values), times = this.series.flatMap((one) => [one.times[0], one.times.at(-1)]);
    const [from, to] = [Math.min(...times), Math.max(...times) + this.bars || 1];
    const top = Math.max(all.reduce((a, b) => Math.max(a, b), 0), this.level?.value ?? 0) * 1.08 || 1;
    const x = (time) => box.left + ((time - from) / Math.max(1e-9, to - from)) * (box.right - box.left);
    const y = (value) => box.bottom - (value / top) * (box.bottom - box.top);
    pen.textBaseline = "middle";
    for (const tick of ticksOf(0, top, 4)) {
      pen.fillStyle = colour("--line");
      pen.fillRect(box.left, Math.round(y(tick)), box.right - box.left, 1);
      pen.fillStyle = colour("--dim");
      pen.textAlign = "right";
      pen.fillText(this.unit(tick), box.left - 8, y(tick));
    }
    pen.textAlign = "center";
    for (const tick of timeTicks(from, to, (box.right - box.left) / 90)) pen.fillText(sinceBegin(tick), x(tick), height - 8);
    for (const one of this.series) this.bars ? this.drawBars(pen, one, x, y, box) : this.drawCurve(pen, one, x, y);
    if (this.level) this.drawLevel(pen, x, y, box);
    if (this.at !== null && this.at >= box.left) this.drawPointer(pen, from, to, box);
  }

  drawBars(pen, one, x, y, box) {
    pen.fillStyle = colour(one.colour);
    one.times.forEach((time, index) => {
      const left = x(time), wide = Math.max(1, x(time + this.bars) - left - 1);
      pen.fillRect(left, y(one.values[index]), wide, box.bottom - y(one.values[index]));
    });
  }

  drawCurve(pen, one, x, y) {
    pen.strokeStyle = colour(one.colour);
    pen.lineWidth = 1.5;
    pen.lineJoin = "round";
    pen.beginPath();
    one.times.forEach((time, index) => pen.lineTo(x(time), y(one.values[index])));
    if (one.times.length === 1) pen.lineTo(x(one.times[0]) + 4, y(one.values[0]));
    pen.stroke();
  }

  drawLevel(pen, x, y, box) {
    pen.strokeStyle = pen.fillStyle = colour("--bad");
    pen.setLineDash([5, 4]);
    pen.lineWidth = 1;
    const at = Math.round(y(this.level.value)) + 0.5; // a row of pixels, not two halves
    pen.beginPath();
    pen.moveTo(box.left, at);
    pen.lineTo(box.right, at);
    pen.stroke();
    pen.setLineDash([]);
    pen.textAlign = "right";
    pen.fillText(`${this.level.name} ${this.unit(this.level.value)}`, box.right, y(this.level.value) - 8);
  }

  drawPointer(pen, from, to, box) {
    const time = from + ((this.at - box.left) / (box.right - box.left)) * (to - from);
    const rows = this.series.map((one) => {
      const index = one.times.findLastIndex((when) => when <= time);
      return index < 0 ? null : [one, one.values[index]];
    }).filter(Boolean).sort((a, b) => b[1] - a[1]).slice(0, 8);
    pen.fillStyle = colour("--faint");
    pen.fillRect(this.at, box.top, 1, box.bottom - box.top);
    const texts = [sinceBegin(Math.round(time)), ...rows.map(([one, value]) => `${one.name}  ${this.unit(value)}`)];
    const wide = Math.max(...texts.map((text) => pen.measureText(text).width)) + 30, high = texts.length * 16 + 8;
    const left = this.at + wide + 12 > box.right ? this.at - wide - 8 : this.at + 8;
    pen.fillStyle = colour("--raised");
    pen.strokeStyle = colour("--line");
    pen.beginPath();
    pen.roundRect(left, box.top, wide, high, 6);
    pen.fill();
    pen.stroke();
    pen.textAlign = "left";
    texts.forEach((text, index) => {
      const middle = box.top + 12 + index * 16;
      if (index) { pen.fillStyle = colour(rows[index - 1][0].colour); pen.fillRect(left + 8, middle - 3, 7, 7); }
      pen.fillStyle = colour(index ? "--text" : "--dim");
      pen.fillText(text, left + (index ? 20 : 8), middle);
    });
  }
}
