// One result: all its files, large, and all that is known of it.

function mediaOf(file, row) {
  const kind = kindOf(file), source = address(file.file), sides = (file.shape || [1e9]).slice(kind === "clip" ? 1 : 0);
  const look = Math.max(...sides.slice(0, 2)) <= TINY ? "tiny" : null;
  if (kind === "picture") return [make("img", { src: source, alt: "", class: look })];
  if (kind === "clip") return [make("video", { src: source, controls: true, autoplay: true, loop: true, class: look })];
  if (kind !== "sound") return [make("a", { href: source }, file.file)];
  const wave = row.thumb && file === row.files[0] ? [make("img", { src: address(`thumbnails/${row.thumb}`), alt: "", class: "sound" })] : [];
  return [...wave, make("audio", { src: source, controls: true })];
}

function pairs(entries) {
  const list = make("dl");
  for (const [name, value] of entries) {
    if (value === undefined || value === null || value === "") continue;
    list.append(make("dt", {}, name), make("dd", { class: name.startsWith("hash") ? "hash" : null }, typeof value === "string" ? value : JSON.stringify(value)));
  }
  return list;
}

const part = (title, entries) => (entries.length ? [make("h3", {}, title), pairs(entries)] : []);

class Detail {
  constructor(dialog) {
    Object.assign(this, { dialog, rows: [], index: 0 });
    dialog.addEventListener("close", () => { this.fill(null); this.closed?.(this.index); });
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    dialog.addEventListener("keydown", (event) => {
      if (event.target.closest("video, audio")) return; // there the arrows wind
      const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (by) { event.preventDefault(); this.go(this.index + by); }
    });
  }

  open(rows, index, closed) {
    Object.assign(this, { rows, closed });
    this.dialog.showModal();
    this.dialog.focus(); // its arrows turn over the results
    this.go(index);
  }

  go(index) {
    if (index < 0 || index >= this.rows.length) return;
    this.index = index;
    this.fill(this.rows[index]);
  }

  fill(row) {
    const [media, facts] = [this.dialog.querySelector(".media"), this.dialog.querySelector(".facts")];
    media.replaceChildren(...(row ? row.files.flatMap((file) => mediaOf(file, row)) : []));
    facts.replaceChildren(...(row ? this.factsOf(row) : []));
    facts.scrollTop = 0;
  }

  factsOf(row) {
    const call = Object.entries(callOf(row)), device = data.devices[row.device] || {};
    const { device: computed, ...releases } = device;
    return [
      make("p", { class: "prompt" }, String(titleOf(row))),
      pairs([["seed", row.seed], ["request", row.id], ["number", `${this.index + 1} of ${this.rows.length} shown`]]),
      ...part("adapters", Object.entries(row.lora || {}).map(([name, strength]) => [name, String(strength)])),
      ...part("call", call),
      ...part("made", [["finished", `${day(row.at)}, ${clock(row.at)}`], ["took", inSeconds(row.seconds)], ["rank", row.rank], ["on", computed],
        ...Object.entries(releases)]),
      ...part("values", Object.entries(row.values || {})),
      ...part("left out", Object.entries(row.left_out || {})),
      ...row.files.flatMap((file) => part(file.file, [
        ["kind", kindOf(file)], ["field", file.field], ["shape", (file.shape || []).join(" × ")], ["size", inBytes(file.bytes)],
        ["frames a second", file.fps], ["samples a second", file.sampling_rate], ["note", file.note], ["hash", file.sha256]])),
    ];
  }
}
