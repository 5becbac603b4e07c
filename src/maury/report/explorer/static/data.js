// Talks to the server: plain JSON, and columns as planes of bytes.

async function ask(path, options) {
  // In a notebook, the frame around the page asks for it.
  const answer = await (window.mauryAsk || fetch)(path, options);
  if (!answer.ok) {
    let text = `the server answered ${answer.status}`;
    try {
      text = (await answer.json()).error || text;
    } catch { /* not JSON: the status must do */ }
    throw new Error(text);
  }
  return answer;
}

export const json = async (path, options) => (await ask(path, options)).json();

// Of each block of rows the lowest bytes of all come first, then the next.
export async function column(name, packedRows) {
  const answer = await ask(`/api/column/${encodeURIComponent(name)}`);
  const planes = new Uint8Array(await answer.arrayBuffer());
  // Flags have more bits than JavaScript combines: two words a row.
  const halves = name === "flags" ? 2 : 1, n = planes.length / (4 * halves);
  const words = Array.from({ length: halves }, () => new Uint32Array(n));
  for (let from = 0; from < n; from += packedRows) {
    const rows = Math.min(packedRows, n - from);
    words.forEach((half, k) => join(planes, 4 * (halves * from + k * rows), half, from, rows));
  }
  return halves === 2 ? words : new Float32Array(words[0].buffer);
}

function join(planes, at, words, from, rows) {
  const second = at + rows, third = second + rows, fourth = third + rows;
  for (let i = 0; i < rows; i++) {
    words[from + i] = planes[at + i] | (planes[second + i] << 8) | (planes[third + i] << 16)
      | (planes[fourth + i] << 24);
  }
}

// One bit per row, the first row in the lowest bit of the first byte.
export function bits(selected) {
  const out = new Uint8Array((selected.length + 7) >> 3);
  for (let i = 0; i < selected.length; i++) if (selected[i]) out[i >> 3] |= 1 << (i & 7);
  return out;
}

export async function download(selected, format) {
  const answer = await ask(`/api/download?format=${format}`, { method: "POST", body: bits(selected) });
  const named = /filename="([^"]+)"/.exec(answer.headers.get("Content-Disposition") || "");
  return { blob: await answer.blob(), name: named ? named[1] : "selection" };
}

export const sendToHub = (selected) =>
  json("/api/samp", { method: "POST", body: bits(selected) });

// Which of n rows an expression selects: one byte a row.
export async function where(text, n) {
  const answer = await ask(`/api/where?text=${encodeURIComponent(text)}`);
  const packed = new Uint8Array(await answer.arrayBuffer());
  return Uint8Array.from({ length: n }, (_, i) => (packed[i >> 3] >> (i & 7)) & 1);
}
