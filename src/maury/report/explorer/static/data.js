// Talks to the server: plain JSON, and columns as planes of bytes.

async function ask(path, options) {
  const answer = await fetch(path, options);
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

export async function column(name) {
  const answer = await ask(`/api/column/${encodeURIComponent(name)}`);
  const planes = new Uint8Array(await answer.arrayBuffer());
  if (name !== "flags") return new Float32Array(joined(planes).buffer);
  // More bits than JavaScript combines: two words a row.
  const half = planes.length >> 1;
  return [planes.subarray(0, half), planes.subarray(half)].map(joined);
}

function joined(planes) {
  const n = planes.length >> 2;
  const words = new Uint32Array(n);
  const second = n, third = 2 * n, fourth = 3 * n;
  for (let i = 0; i < n; i++) {
    words[i] = planes[i] | (planes[second + i] << 8) | (planes[third + i] << 16)
      | (planes[fourth + i] << 24);
  }
  return words;
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
