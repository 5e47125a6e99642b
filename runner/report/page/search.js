// Which results are shown, in which order.

const ENDINGS = { png: "picture", mp4: "clip", wav: "sound", flac: "sound", npy: "array", safetensors: "latents" };
const kindOf = (file) => file.kind || ENDINGS[file.file.split(".").pop()] || "file";
const callOf = (row) => data.calls[row.call] || {};
const titleOf = (row) => row.prompt ?? Object.entries(callOf(row)).find(([name]) => name.endsWith("prompt"))?.[1] ?? row.id;
const steps = (call) => call.num_inference_steps;

for (const row of data.rows) {
  row.kind = kindOf(row.files[0]);
  row.text = [titleOf(row), row.id, ...Object.values(callOf(row)).filter((value) => typeof value === "string"),
    ...Object.keys(row.lora || {})].join(" ").toLowerCase();
}

/** Of `name:value` the value that a row has for the name; undefined where there is no such name. */
function fieldOf(row, name) {
  switch (name) {
    case "seed": return String(row.seed);
    case "rank": return String(row.rank);
    case "kind": return row.kind;
    case "id": return row.id;
    case "steps": return String(steps(callOf(row)));
    case "lora": return Object.keys(row.lora || {}).join(" ").toLowerCase();
    case "device": return JSON.stringify(data.devices[row.device] || {}).toLowerCase();
    default: {
      const value = callOf(row)[name];
      return value === undefined ? undefined : (typeof value === "string" ? value : JSON.stringify(value)).toLowerCase();
    }
  }
}

const NAMES = new Set(["seed", "rank", "kind", "id", "steps", "lora", "device", ...data.calls.flatMap(Object.keys)]);
const WHOLE = new Set(["seed", "rank", "steps", "kind"]); // others match a part

/** What a query asks of a row: all of its words; `name:value` asks a field, `-word` asks that it is not there. */
function matcher(query) {
  const words = query.toLowerCase().match(/-?(?:[\w]+:)?"[^"]*"|\S+/g) || [];
  const tests = words.map((written) => {
    const not = written.length > 1 && written.startsWith("-"), word = not ? written.slice(1) : written;
    const [, name, value] = word.match(/^(\w+):(.+)$/) || [];
    const plain = (text) => text.replaceAll('"', "");
    if (name !== undefined && NAMES.has(name)) {
      const wanted = plain(value);
      return (row) => {
        const found = fieldOf(row, name) ?? "";
        return (WHOLE.has(name) ? found === wanted : found.includes(wanted)) !== not;
      };
    }
    return (row) => row.text.includes(plain(word)) !== not;
  });
  return (row) => tests.every((test) => test(row));
}

const ORDERS = {
  job: null,
  latest: (a, b) => b.at - a.at,
  slowest: (a, b) => b.seconds - a.seconds,
  seed: (a, b) => a.seed - b.seed,
};

function found(query, kind, order) {
  const matches = matcher(query);
  const rows = data.rows.filter((row) => (!kind || row.kind === kind) && matches(row));
  return ORDERS[order] ? rows.sort(ORDERS[order]) : rows;
}
