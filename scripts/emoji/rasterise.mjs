// Rasterises icons: node rasterise.mjs NODE_MODULES_PARENT OUT SIZE < [{"package": "...", "icon": "..."}, ...]
// Writes SIZE x SIZE straight-alpha RGBA bytes, one icon after the other, to OUT. A missing icon is an error.
import { createRequire } from "node:module";
import fs from "node:fs";
import path from "node:path";

const [root, out, sizeText] = process.argv.slice(2);
const size = Number(sizeText);
const require = createRequire(path.join(path.resolve(root), "package.json"));
const { Resvg } = require("@resvg/resvg-js");
const sets = new Map();

function svg(packageName, icon) {
  if (!sets.has(packageName)) sets.set(packageName, require(`${packageName}/icons.json`));
  const set = sets.get(packageName);
  const entry = set.icons[icon];
  if (entry === undefined) throw new Error(`${packageName} has no icon "${icon}"`);
  const [left, top] = [entry.left ?? 0, entry.top ?? 0];
  const [width, height] = [entry.width ?? set.width ?? 16, entry.height ?? set.height ?? 16];
  const box = `${left} ${top} ${width} ${height}`;
  return `<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="${box}" width="${size}" height="${size}">${entry.body}</svg>`;
}

const file = fs.openSync(out, "w");
for (const { package: packageName, icon } of JSON.parse(fs.readFileSync(0, "utf8"))) {
  const picture = new Resvg(svg(packageName, icon)).render();
  if (picture.width !== size || picture.height !== size) throw new Error(`${icon} came out as ${picture.width}x${picture.height}`);
  const premultiplied = picture.pixels;
  const straight = Buffer.alloc(premultiplied.length);
  for (let i = 0; i < premultiplied.length; i += 4) {
    const alpha = premultiplied[i + 3];
    for (let c = 0; c < 3; c++) straight[i + c] = alpha ? Math.min(255, Math.round((premultiplied[i + c] * 255) / alpha)) : 0;
    straight[i + 3] = alpha;
  }
  fs.writeSync(file, straight);
}
fs.closeSync(file);
