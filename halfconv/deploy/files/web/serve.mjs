// Serves this folder on http://localhost, for trying the package out: node serve.mjs [PORT]
//
// The two Cross-Origin headers let WebAssembly use several threads; a server of your own should send them, too.

import { createReadStream, realpathSync, statSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join, sep } from "node:path";
import { fileURLToPath } from "node:url";

const ROOT = realpathSync(fileURLToPath(new URL(".", import.meta.url)));
const TYPES = {
  ".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".mjs": "text/javascript",
  ".json": "application/json", ".wasm": "application/wasm", ".md": "text/markdown; charset=utf-8",
};
const HEADERS = {
  "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp", "Cache-Control": "no-cache",
  "X-Content-Type-Options": "nosniff",
};

function find(url) {
  try {
    const path = new URL(url, "http://localhost").pathname;
    const file = realpathSync(join(ROOT, decodeURIComponent(path.endsWith("/") ? `${path}index.html` : path)));
    return file.startsWith(ROOT + sep) && statSync(file).isFile() ? file : null;
  } catch {
    return null;
  }
}

const server = createServer((request, response) => {
  const file = ["GET", "HEAD"].includes(request.method) ? find(request.url) : null;
  if (!file) {
    response.writeHead(404, { ...HEADERS, "Content-Type": "text/plain" }).end("not found\n");
    return;
  }
  response.writeHead(200, {
    ...HEADERS, "Content-Type": TYPES[extname(file)] ?? "application/octet-stream", "Content-Length": statSync(file).size,
  });
  if (request.method === "HEAD") response.end();
  else createReadStream(file).on("error", () => response.destroy()).pipe(response);
});
server.listen(Number(process.argv[2] ?? 8080), "127.0.0.1", () => {
  console.log(`http://localhost:${server.address().port}/`);
});
