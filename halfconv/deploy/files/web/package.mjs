// The files of a package: each is compared with the manifest before anything reads it.

/** What a person can do something about: the message is one sentence, and what to try. */
export class Problem extends Error {
  constructor(found, advice) {
    super(advice ? `${found}; try: ${advice}` : found);
    this.name = "Problem";
  }
}

const AGAIN = "copy the whole package to the server again, and reload without the browser's cache";

/** A package on a server. */
export class Package {
  #entries;

  /**
   * @param {URL} base Its folder.
   * @param {object} manifest The content of manifest.json.
   * @param {(done: number, total: number, path: string) => void} [onProgress] Told of the bytes that have come of a file.
   */
  constructor(base, manifest, onProgress = () => {}) {
    this.base = base;
    this.manifest = manifest;
    this.onProgress = onProgress;
    this.#entries = new Map(manifest.files.map((entry) => [entry.path, entry]));
  }

  /** Open a package. */
  static async open(base, onProgress) {
    if (!globalThis.crypto?.subtle) {
      throw new Problem("this page is no secure context, so the browser has no SHA-256", "HTTPS, or http://localhost");
    }
    const bytes = await download(new URL("manifest.json", base), "manifest.json");
    let manifest;
    try {
      manifest = JSON.parse(new TextDecoder().decode(bytes));
    } catch {
      throw new Problem("manifest.json is no JSON", AGAIN);
    }
    if (manifest.schema_version !== 1 || !Array.isArray(manifest.files)) {
      throw new Problem(`manifest.json has version ${manifest.schema_version}, and 1 is known`, "the loader of the same package");
    }
    return new Package(base, manifest, onProgress);
  }

  /**
   * Download a file, and compare it with the manifest.
   *
   * @param {string} path Its path in the package.
   * @returns {Promise<Uint8Array>} Its bytes.
   */
  async bytes(path) {
    const entry = this.#entries.get(path);
    if (!entry) throw new Problem(`${path} is no file of this package`, AGAIN);
    const found = await download(new URL(path, this.base), path, entry.bytes, this.onProgress);
    if (found.byteLength !== entry.bytes) {
      throw new Problem(`${path} was changed: ${found.byteLength} bytes, not ${entry.bytes}`, AGAIN);
    }
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", found));
    const sha256 = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
    if (sha256 !== entry.sha256) throw new Problem(`${path} was changed: its SHA-256 is not the manifest's`, AGAIN);
    return found;
  }
}

async function download(url, path, expected, onProgress = () => {}) {
  let response;
  try {
    response = await fetch(url);
  } catch (error) {
    throw new Problem(`${path} cannot be downloaded: ${error.message}`, "look at the connection and at the server");
  }
  if (!response.ok) throw new Problem(`${path} is missing: the server answered ${response.status}`, AGAIN);
  if (expected === undefined) return new Uint8Array(await response.arrayBuffer());
  const room = new Uint8Array(expected);
  const reader = response.body.getReader();
  let done = 0;
  for (;;) {
    const { value, done: ended } = await reader.read();
    if (ended) break;
    if (done + value.byteLength > expected) {
      await reader.cancel();
      throw new Problem(`${path} was changed: it has more than ${expected} bytes`, AGAIN);
    }
    room.set(value, done);
    done += value.byteLength;
    onProgress(done, expected, path);
  }
  return room.subarray(0, done);
}
