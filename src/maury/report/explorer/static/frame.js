// Starts the page in the frame of a notebook: its modules become addresses of the frame itself, and
// what they ask goes to the widget around it.

let last = 0;
const waiting = new Map();

window.addEventListener("message", (event) => {
  if (event.source !== window.parent) return;
  const done = waiting.get(event.data?.id);
  waiting.delete(event.data?.id);
  done?.(event.data);
});

window.mauryAsk = async (path, { method = "GET", body = null } = {}) => {
  const id = ++last;
  const answer = await new Promise((done) => {
    waiting.set(id, done);
    window.parent.postMessage({ id, method, path, body }, "*");
  });
  const { status, headers = {} } = answer;
  let stream = new Blob(answer.body ? [answer.body] : []).stream();
  // A browser unpacks what comes by HTTP; here nobody has.
  if (headers["Content-Encoding"] === "gzip") {
    stream = stream.pipeThrough(new DecompressionStream("gzip"));
  }
  return new Response(stream, { status, headers });
};

// Modules in the order of their needs; each names those before it by their new address.
const addresses = new Map();
for (const [name, text] of JSON.parse(document.getElementById("modules").textContent)) {
  const linked = text.replace(/from "\.\/([\w.]+)"/g, (_, used) => `from "${addresses.get(used)}"`);
  addresses.set(name, URL.createObjectURL(new Blob([linked], { type: "text/javascript" })));
}
import(addresses.get("main.js"));
