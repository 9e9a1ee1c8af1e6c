// An image to start from, and a brush that marks where it is to be generated anew. Nothing is sent before Generate.
const MOST = 2048; // pixels of the longer side
const frame = element.querySelector(".px-brush");
const [image, mask] = element.querySelectorAll("canvas");
const [file, width] = element.querySelectorAll("input");
const said = element.querySelector(".px-line");
let strokes = [];

async function open(source, isNew) {
  said.textContent = "";
  try {
    const bitmap = await createImageBitmap(source instanceof Blob ? source : await (await fetch(source)).blob());
    const scale = Math.min(1, MOST / Math.max(bitmap.width, bitmap.height));
    for (const canvas of [image, mask]) {
      canvas.width = Math.max(1, Math.round(bitmap.width * scale));
      canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    }
    image.getContext("2d").drawImage(bitmap, 0, 0, image.width, image.height);
  } catch {
    said.textContent = "This is no image that the browser can read.";
    return;
  }
  strokes = [];
  frame.dataset.open = "yes";
  if (isNew) trigger("opened", { width: image.width, height: image.height });
}

function close() {
  strokes = [];
  file.value = "";
  delete frame.dataset.open;
}

function paint() {
  const pen = mask.getContext("2d");
  pen.clearRect(0, 0, mask.width, mask.height);
  pen.strokeStyle = "#d946ef";
  pen.lineCap = pen.lineJoin = "round";
  for (const stroke of strokes) {
    pen.lineWidth = stroke.width;
    pen.beginPath();
    pen.moveTo(...stroke.points[0]); // so that a single point is a line, too
    for (const [x, y] of stroke.points) pen.lineTo(x, y);
    pen.stroke();
  }
}

function mark(event) {
  const scale = mask.width / mask.clientWidth;
  strokes.at(-1).points.push([event.offsetX * scale, event.offsetY * scale]);
  paint();
}

mask.addEventListener("pointerdown", (event) => {
  mask.setPointerCapture(event.pointerId);
  strokes.push({ width: (width.value / 100) * Math.max(mask.width, mask.height), points: [] });
  mark(event);
});
mask.addEventListener("pointermove", (event) => event.buttons && strokes.length && mark(event));
file.addEventListener("change", () => file.files[0] && open(file.files[0], true));
frame.addEventListener("dragover", (event) => event.preventDefault());
frame.addEventListener("drop", (event) => {
  event.preventDefault();
  if (event.dataTransfer.files[0]) open(event.dataTransfer.files[0], true);
});
element.addEventListener("click", (event) => {
  if (event.target.name === "undo") { strokes.pop(); paint(); }
  if (event.target.name === "close") close();
});
window.pixartStart = {
  open: (source) => open(source, false),
  value: () => frame.dataset.open ? JSON.stringify({
    image: image.toDataURL(), mask: strokes.length ? mask.toDataURL() : null,
  }) : "",
};
if (window.pixartEdit) open(window.pixartEdit, false); // Gradio makes this element when it is first shown
