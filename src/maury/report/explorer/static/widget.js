// The page within a notebook: a frame of its own, which asks the kernel by the widget's messages.

const STATUS = 500;

export default {
  render({ model, el }) {
    const frame = document.createElement("iframe");
    // No origin, no cookies, no way to the notebook's page but messages.
    frame.setAttribute("sandbox",
      "allow-scripts allow-forms allow-downloads allow-popups allow-popups-to-escape-sandbox");
    frame.setAttribute("title", model.get("title"));
    frame.style.cssText = `width: 100%; height: ${model.get("height")}px; border: 1px solid #8b92a1;`;
    const asked = (event) => {
      if (event.source !== frame.contentWindow || typeof event.data?.id !== "number") return;
      const { id, method, path, body } = event.data;
      model.send({ id, method, path }, undefined, body ? [body] : []);
    };
    const told = (answer, buffers) => {
      if (typeof answer?.id !== "number") return;
      const [part] = buffers || [];
      const body = part ? new Uint8Array(part.buffer || part, part.byteOffset || 0, part.byteLength) : null;
      frame.contentWindow.postMessage({ status: STATUS, ...answer, body }, "*");
    };
    window.addEventListener("message", asked);
    model.on("msg:custom", told);
    frame.srcdoc = model.get("page");
    el.replaceChildren(frame);
    return () => {
      window.removeEventListener("message", asked);
      model.off("msg:custom", told);
    };
  },
};
