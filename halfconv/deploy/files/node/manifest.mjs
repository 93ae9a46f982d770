// The package's manifest: what it holds, and whether every file is as it was when it was made.

import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { lstat, readFile, readdir } from "node:fs/promises";
import { join } from "node:path";

/** What tools make inside a package once it is in use. */
const TOOLS = new Set([".build", ".git", ".gradle", ".venv", "__pycache__", "build", "node_modules", "package-lock.json", ".DS_Store"]);

/** Something that cannot be used: told in one line, with exit code 2. */
export class Unusable extends Error {}

/** Read the manifest of the package in `folder`. */
export async function readManifest(folder) {
  let content;
  try {
    content = JSON.parse(await readFile(join(folder, "manifest.json"), "utf8"));
  } catch (error) {
    throw new Unusable(`manifest.json cannot be read: ${error.message}; try: copy the whole package again`);
  }
  if (content.schema_version !== 1) throw new Unusable(`manifest.json has version ${content.schema_version}; try: a newer halfconv`);
  if (!/^[A-Za-z0-9_][A-Za-z0-9_.-]*$/.test(content.model)) {
    throw new Unusable(`manifest.json: the model cannot be called '${content.model}'; try: copy the whole package again`);
  }
  return content;
}

/** Compare every file with the manifest, and return it. */
export async function checkFiles(folder) {
  const content = await readManifest(folder), present = new Set(await list(folder, ""));
  const known = new Map(content.files.map((entry) => [entry.path, entry]));
  for (const path of known.keys()) if (!present.has(path)) throw new Unusable(`${path} is missing; try: copy the whole package again`);
  for (const path of present) if (!known.has(path)) throw new Unusable(`${path} is no file of this package; try: move it elsewhere`);
  for (const [path, entry] of known) {
    if ((await sha256(join(folder, path))) !== entry.sha256) {
      throw new Unusable(`${path} was changed: its SHA-256 is not the manifest's; try: copy the whole package again`);
    }
  }
  return content;
}

async function list(folder, inside) {
  const found = [];
  for (const name of (await readdir(join(folder, inside))).sort()) {
    if (TOOLS.has(name) || (inside === "" && name === "manifest.json")) continue;
    const path = inside ? `${inside}/${name}` : name, status = await lstat(join(folder, path));
    if (status.isDirectory()) found.push(...(await list(folder, path)));
    else if (status.isFile()) found.push(path);
    else throw new Unusable(`${path} is a link or no plain file; try: remove it`);
  }
  return found;
}

async function sha256(path) {
  const hash = createHash("sha256");
  for await (const part of createReadStream(path)) hash.update(part);
  return hash.digest("hex");
}

/** Refuse a runtime older than the package needs. */
export function requireVersion(content, found) {
  const parts = (version) => version.split(".").map((part) => parseInt(part, 10) || 0);
  const [have, least] = [parts(found), parts(content.min_ort)];
  const at = least.findIndex((part, place) => part !== (have[place] ?? 0));
  if (at >= 0 && (have[at] ?? 0) < least[at]) {
    throw new Unusable(`onnxruntime-node ${found} is too old for this package, which needs ${content.min_ort}; try: npm install`);
  }
}
