// The drawing area: a pen of a colour and a width; each stroke is sent as a PNG file.
const canvas = element.querySelector("canvas");
const pen = canvas.getContext("2d");
const colour = element.querySelector("input[type=color]");
const width = element.querySelector("input[type=range]");
let drawing = false;

function fill(style) {
  pen.fillStyle = style;
  pen.fillRect(0, 0, canvas.width, canvas.height);
}

function send() {
  trigger("submit", { image: canvas.toDataURL("image/png") });
}

function lineTo(event) {
  const box = canvas.getBoundingClientRect();
  const scale = canvas.width / box.width;
  pen.lineTo((event.clientX - box.left) * scale, (event.clientY - box.top) * scale);
  pen.stroke();
}

fill("#ffffff");
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  drawing = true;
  pen.strokeStyle = colour.value;
  pen.lineWidth = Number(width.value);
  pen.lineCap = pen.lineJoin = "round";
  pen.beginPath();
  lineTo(event);
  lineTo(event);
});
canvas.addEventListener("pointermove", (event) => drawing && lineTo(event));
for (const end of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(end, () => {
    if (drawing) send();
    drawing = false;
  });
}
element.querySelector(".fill").addEventListener("click", () => {
  fill(colour.value);
  send();
});
element.querySelector(".clear").addEventListener("click", () => fill("#ffffff"));
