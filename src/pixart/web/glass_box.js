// The words, the slider and the maps of one drawing; `element` is Gradio's, its content is looked_html's.
let box = null, data = null, maps = null, word = null, timer = null;

const part = (name) => box.querySelector(name);
const percent = (share) => (share >= 0.095 ? (100 * share).toFixed(0) : (100 * share).toFixed(1)) + '%';

// From nothing over violet and orange to yellow; what was read least shows the picture as it is.
const STOPS = [[40, 0, 90, 0], [110, 20, 150, 90], [220, 60, 80, 170], [255, 150, 20, 210], [255, 240, 90, 235]];
function colour(value) {
  const place = (value / 255) * (STOPS.length - 1), low = Math.min(Math.floor(place), STOPS.length - 2);
  return STOPS[low].map((from, i) => from + (place - low) * (STOPS[low + 1][i] - from));
}

function begin() {
  clearInterval(timer);
  timer = null;
  word = null;
  box = element.querySelector('.gb');
  if (!box) return;
  data = JSON.parse(box.dataset.box);
  maps = Uint8Array.from(atob(data.maps), (letter) => letter.charCodeAt(0));
  show();
}

function show(hovered = null) {
  const frame = Number(part('.gb-slider').value), shown = hovered === null ? word : hovered;
  box.querySelectorAll('.gb-frame').forEach((image, i) => { image.hidden = i !== frame; });
  box.querySelectorAll('.gb-word').forEach((button) => {
    button.setAttribute('aria-pressed', String(Number(button.dataset.word) === word));
  });
  part('.gb-label').textContent = data.labels[frame];
  part('.gb-slider').setAttribute('aria-valuetext', data.labels[frame]);
  part('.gb-stage').classList.toggle('looking', shown !== null);
  const canvas = part('.gb-map');
  canvas.hidden = shown === null;
  if (shown === null) {
    part('.gb-legend').textContent = data.words.length
      ? `Choose a word. The start and end of the text and its marks take ${data.rest} of the attention.` : '';
    return;
  }
  const [rows, columns] = data.grid, size = rows * columns;
  const start = (frame * data.words.length + shown) * size;
  canvas.width = columns;
  canvas.height = rows;
  const pixels = new ImageData(columns, rows);
  for (let i = 0; i < size; i++) pixels.data.set(colour(maps[start + i]), 4 * i);
  canvas.getContext('2d').putImageData(pixels, 0, 0);
  part('.gb-legend').textContent = `“${data.words[shown]}” takes ${percent(data.lows[frame][shown])} (as it is) to `
    + `${percent(data.highs[frame][shown])} (yellow) of the attention at a place.`;
}

function stop() {
  clearInterval(timer);
  timer = null;
  part('.gb-play').textContent = '▶';
}

function play() {
  const slider = part('.gb-slider'), mine = box;
  if (timer) return stop();
  if (slider.value === slider.max) slider.value = 0;
  part('.gb-play').textContent = '⏸';
  timer = setInterval(() => {
    if (!mine.isConnected) { clearInterval(timer); return; }
    slider.value = Number(slider.value) + 1;
    show();
    if (slider.value === slider.max) stop();
  }, 350);
}

element.addEventListener('click', (event) => {
  const button = event.target.closest('.gb-word');
  if (button) {
    const chosen = Number(button.dataset.word);
    word = word === chosen ? null : chosen;
    show();
  } else if (event.target.closest('.gb-play')) play();
});
element.addEventListener('input', (event) => {
  if (event.target.matches('.gb-slider')) { if (timer) stop(); show(); }
});
element.addEventListener('pointerover', (event) => {
  const button = event.pointerType === 'mouse' && event.target.closest('.gb-word');
  if (button) show(Number(button.dataset.word));
});
element.addEventListener('pointerout', (event) => {
  if (event.pointerType === 'mouse' && event.target.closest('.gb-word')) show();
});
watch('value', begin);
begin();
