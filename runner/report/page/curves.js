// The charts of the overview: requests and memory over the time of the last run.

const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400]; // seconds of a bar

function lastRun() {
  const run = data.runs.at(-1), ends = data.rows.map((row) => row.at);
  if (run && run.began) return { from: run.began, to: run.ended };
  return ends.length ? { from: Math.min(...data.rows.map((row) => row.at - row.seconds)), to: Math.max(...ends) } : null;
}

/** How many requests were finished in each stretch of the run, a minute. */
function paceSeries(run) {
  const done = data.rows.map((row) => row.at - run.from).filter((at) => at >= 0);
  const to = Math.max(run.to - run.from, ...done.slice(-1), 1), wide = STEPS.find((step) => to / step <= 90) ?? to / 90;
  const counts = new Array(Math.ceil(to / wide) || 1).fill(0);
  for (const at of done) counts[Math.min(counts.length - 1, Math.floor(at / wide))]++;
  const last = Math.max(to - (counts.length - 1) * wide, wide / 10); // the run ended within it
  const values = counts.map((count, index) => (count / (index === counts.length - 1 ? last : wide)) * 60);
  return { wide, series: [{ name: "made", times: counts.map((_, index) => index * wide), values, colour: "--compute" }] };
}

function memorySeries(kind, run) {
  const times = data.memory.times.map((time) => time - run.from);
  return Object.entries(data.memory[kind]).map(([name, values], index) => ({ name, times, values, colour: HUES[index % HUES.length] }));
}

const charts = [];

function drawCharts() {
  if (charts.length) { charts.forEach((chart) => chart.draw()); return; }
  const run = lastRun(), pace = run && data.rows.length ? paceSeries(run) : null;
  const add = (id, given) => {
    const figure = byId(id);
    figure.hidden = !given || !given.series.some((one) => one.times.length);
    if (!figure.hidden) charts.push(new Chart(figure, given));
  };
  add("pace", pace && { series: pace.series, bars: pace.wide, unit: (value) => `${+value.toPrecision(3)}/min` });
  const mebibytes = (value) => inBytes(value * 2 ** 20);
  for (const kind of ["host", "device"]) {
    const level = data.memory.planned[kind] ?? null;
    add(`${kind}-memory`, run && { series: memorySeries(kind, run), unit: mebibytes, level });
  }
}
