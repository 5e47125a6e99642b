// The page put together.

const detail = new Detail(byId("detail"));
const grid = new Grid(byId("grid"), (index) => detail.open(grid.rows, index, (last) => grid.focus(last)));
const search = { kind: "" };

function refresh() {
  const query = byId("query").value.trim(), order = byId("order").value;
  const rows = found(query, search.kind, order);
  grid.show(rows);
  byId("none").hidden = rows.length > 0;
  byId("shown").value = rows.length === data.rows.length ? rows.length.toLocaleString("en") : `${rows.length.toLocaleString("en")} of ${data.rows.length.toLocaleString("en")}`;
  if (shownView.name === "results") writeAddress("results", { q: query, kind: search.kind, order: order === "job" ? "" : order });
}

function drawKinds() {
  const kinds = [...new Set(data.rows.map((row) => row.kind))];
  byId("kinds").replaceChildren(...(kinds.length < 2 ? [] : kinds).map((kind) => {
    const button = make("button", { type: "button", "aria-pressed": search.kind === kind }, `${kind}s`);
    button.addEventListener("click", () => { search.kind = search.kind === kind ? "" : kind; drawKinds(); refresh(); });
    return button;
  }));
}

function drawOverview() {
  const latest = [...data.rows].sort(ORDERS.latest).slice(0, 12);
  byId("latest").replaceChildren(...latest.map((row, index) => cellOf(row, () => detail.open(latest, index))));
  byId("latest-card").hidden = latest.length === 0;
  const middle = median(data.rows.map((row) => row.seconds));
  byId("figures-rate").hidden = middle === undefined;
  if (middle !== undefined) byId("figures-rate").querySelector("dd").textContent = inSeconds(middle);
}

function follow() {
  const { name, query } = readAddress();
  if (name === "results") {
    byId("query").value = query.get("q") || "";
    search.kind = query.get("kind") || "";
    byId("order").value = query.get("order") in ORDERS ? query.get("order") : "job";
  }
  showView(name, (shown) => {
    if (shown === "overview") { drawOverview(); drawCharts(); }
    if (shown === "timeline") drawTimeline();
    if (shown === "results") { drawKinds(); refresh(); }
  });
}

function setTheme() {
  const root = document.documentElement;
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
  charts.forEach((chart) => chart.draw());
  lanes.timeline?.draw();
}

document.querySelector("form.toolbar").addEventListener("submit", (event) => event.preventDefault());
byId("query").addEventListener("input", refresh);
byId("order").addEventListener("change", refresh);
byId("size").addEventListener("input", (event) => grid.resize(Number(event.target.value)));
for (const entry of document.querySelectorAll("details")) {
  // What went wrong stands at a traceback's end.
  entry.addEventListener("toggle", () => { const text = entry.querySelector("pre"); if (text) text.scrollTop = text.scrollHeight; });
}
byId("theme").addEventListener("click", setTheme);
addEventListener("hashchange", () => { if (readAddress().name !== shownView.name) { follow(); scrollTo(0, 0); } });
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("detail").open) return;
  if (event.target.closest("input[type=search], select")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.key === "/") { event.preventDefault(); location.hash = "#results"; follow(); byId("query").focus(); }
  if (event.key === "d") setTheme();
  const tab = tabs[Number(event.key) - 1];
  if (tab) location.hash = tab.hash;
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { charts.forEach((chart) => chart.draw()); lanes.timeline?.draw(); });

/** While the job runs the page is written anew: look again, unless somebody is in the middle of something. */
function keepUpToDate() {
  const busyUntil = { time: 0 };
  for (const kind of ["keydown", "pointerdown", "pointermove", "wheel", "scroll"]) {
    addEventListener(kind, () => { busyUntil.time = Date.now() + 10_000; }, { passive: true });
  }
  setInterval(() => {
    const isBusy = Date.now() < busyUntil.time || byId("detail").open || document.hidden;
    if (!isBusy) { history.replaceState({ top: scrollY }, ""); location.reload(); }
  }, 30_000);
}

follow();
scrollTo(0, history.state?.top ?? 0);
if (["running", "silent"].includes(data.state)) keepUpToDate();
