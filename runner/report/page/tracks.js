// What the timeline shows: each rank's trace; without one, the requests that it made.

const ROW_COLOURS = { request: "--faint", stage: "--faint", component: "--accent", block: "--compute", wait: "--wait", prefetch: "--move",
  exchange: "--exchange", write: "--dim" };
const SHOWN = { block: "compute of blocks", wait: "wait", prefetch: "prefetch", exchange: "exchange" };

function withLongest(row) {
  row.longest = row.length.reduce((most, length) => Math.max(most, length), 0);
  return row;
}

function tracedGroups() {
  const { ranks, labels, requests } = data.timeline;
  const titles = new Map(data.rows.map((row) => [row.id, String(titleOf(row))]));
  return ranks.map(({ rank, rows }) => ({
    name: `rank ${rank}`,
    rows: Object.entries(rows).map(([name, row]) => withLongest({
      name, colour: ROW_COLOURS[name], begin: row.begin, length: row.length,
      text: (index, short) => {
        const [what, stage, component, block] = labels[row.label[index]], id = requests[row.request[index]];
        const title = id ? titles.get(id) ?? id : "";
        if (what === "request") return title || what;
        const place = block || component || stage;
        if (short) return place || what;
        return [what === name ? place : `${what} ${place}`, row.step[index] >= 0 ? `step ${row.step[index]}` : "", title].filter(Boolean).join(" · ");
      },
    })),
  }));
}

function requestGroups() {
  const begin = data.rows.reduce((least, row) => Math.min(least, row.at - row.seconds), Infinity);
  const ranks = new Map();
  for (const row of data.rows) ranks.set(row.rank, [...(ranks.get(row.rank) ?? []), row]);
  return [...ranks].sort(([a], [b]) => a - b).map(([rank, rows]) => {
    const sorted = rows.sort((a, b) => a.at - a.seconds - (b.at - b.seconds));
    return { name: `rank ${rank}`, rows: [withLongest({
      name: "requests", colour: "--compute", text: (index) => String(titleOf(sorted[index])),
      begin: sorted.map((row) => (row.at - row.seconds - begin) * 1e6), length: sorted.map((row) => row.seconds * 1e6) })] };
  });
}

const lanes = { timeline: null };

function drawTimeline() {
  if (lanes.timeline) { lanes.timeline.draw(); return; }
  const isTraced = data.timeline.ranks.length > 0, groups = isTraced ? tracedGroups() : requestGroups();
  const note = isTraced
    ? data.timeline.is_cut ? "The page holds the beginning of the trace; the files in profile/ hold all of it." : ""
    : groups.length ? "What each rank made. job.profile=true also shows blocks, prefetch, waits and exchanges." : "Nothing is made yet.";
  byId("lanes-note").textContent = note;
  byId("lanes").hidden = groups.length === 0;
  if (!groups.length) return;
  lanes.timeline = new Timeline(byId("lanes"), byId("tip"), groups, (timeline) => drawLegend(timeline, groups, isTraced));
  lanes.timeline.draw();
}

/** The colours, each with the part of the time in view that ranks spent so, in the middle. */
function drawLegend(timeline, groups, isTraced) {
  byId("span").value = `${inSeconds((timeline.to - timeline.from) / 1e6)} in view`;
  if (!isTraced) return;
  clearTimeout(lanes.later);
  lanes.later = setTimeout(() => byId("legend").replaceChildren(...Object.entries(SHOWN).flatMap(([name, shown]) => {
    const parts = groups.map((group) => group.rows.find((row) => row.name === name)).filter(Boolean).map((row) => busy(row, timeline));
    if (!parts.length) return [];
    const swatch = make("i");
    swatch.style.background = `var(${ROW_COLOURS[name]})`;
    return [make("span", {}, swatch, `${shown} ${Math.round(100 * median(parts))} %`)];
  })), 80);
}
