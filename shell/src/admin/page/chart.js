// A chart over the last minutes: lines, or areas stacked upon each other, and a legend below with
// the figures of now or of the moment that is pointed at.
//
// Samples are { at, gap, values: Map(key -> number) }, oldest first, `at` in milliseconds. Before a
// sample with `gap` nothing was seen, and nothing is drawn.

const SPAN = 5 * 60 * 1000;

// How much is shown, and how far the labels are apart, in seconds. Little while there is little.
const SCALES = [[60, 15], [120, 30], [SPAN / 1000, 60]];

class Chart {
  constructor(name, { stacked, quiet }) {
    this.canvas = byId(name);
    this.legend = byId(`${name}-legend`);
    this.when = byId(`${name}-when`);
    this.stacked = stacked;
    this.quiet = quiet;
    this.series = [];
    this.samples = [];
    this.now = 0;
    this.top = 1;
    this.pointed = null;
    this.items = new Map();
    this.canvas.addEventListener('pointermove', (event) => this.point(event.offsetX));
    this.canvas.addEventListener('pointerdown', (event) => this.point(event.offsetX));
    this.canvas.addEventListener('pointerleave', () => this.point(null));
    this.canvas.addEventListener('keydown', (event) => this.key(event));
    this.canvas.addEventListener('blur', () => this.point(null));
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.draw());
  }

  // `series` are { key, label, color }, `color` the name of a custom property.
  show(series, samples, now) {
    this.series = series;
    this.samples = samples;
    this.now = now;
    this.draw();
  }

  point(x) {
    this.pointed = x;
    this.draw();
  }

  // The arrow keys go from sample to sample.
  key(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -1e9, End: 1e9 };
    const step = steps[event.key];
    if (event.key === 'Escape') this.point(null);
    if (step === undefined || this.samples.length === 0 || !this.x) return;
    event.preventDefault();
    const last = this.samples.length - 1;
    const from = this.pointed === null ? last + 1 : this.nearest(this.x);
    this.point(this.x(this.samples[Math.min(last, Math.max(0, from + step))].at));
  }

  // The sample that is nearest to what is pointed at.
  nearest(x) {
    const distance = (i) => Math.abs(x(this.samples[i].at) - this.pointed);
    let nearest = 0;
    for (let i = 1; i < this.samples.length; i += 1) if (distance(i) <= distance(nearest)) nearest = i;
    return nearest;
  }

  // What is drawn of a sample: for each series where it begins and where it ends.
  spans(sample) {
    let floor = 0;
    return this.series.map(({ key }) => {
      const value = sample.values.get(key) ?? 0;
      const span = this.stacked ? [floor, floor + value] : [0, value];
      floor += this.stacked ? value : 0;
      return span;
    });
  }

  draw() {
    const box = this.canvas.getBoundingClientRect();
    if (box.width === 0) return;
    const scale = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(box.width * scale), Math.round(box.height * scale)];
    if (this.canvas.width !== width || this.canvas.height !== height) {
      Object.assign(this.canvas, { width, height });
    }
    const pen = this.canvas.getContext('2d');
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, box.width, box.height);
    pen.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    const spans = this.samples.map((sample) => this.spans(sample));
    const most = Math.max(0, ...spans.map((all) => Math.max(0, ...all.map(([, end]) => end))));
    // Grows at once; shrinks when there is much air, so that it does not jump.
    if (most > this.top || most < this.top * 0.4) this.top = niceTop(most);
    const area = this.frame(pen, box);
    this.x = area.x;
    this.plot(pen, area, spans);
    if (most === 0 && this.quiet && this.samples.length > 0) this.say(pen, area, this.quiet);
    if (this.samples.length === 0) this.say(pen, area, 'waiting for the second report');
    const at = this.mark(pen, area, spans);
    write(this.when, at === null ? 'now' : `${duration((this.now - this.samples[at].at) / 1000)} ago`);
    this.describe(at ?? this.samples.length - 1);
  }

  // The grid and its labels; returns where the plot goes.
  frame(pen, box) {
    const color = colors();
    const ticks = [0, 0.25, 0.5, 0.75, 1].map((part) => part * this.top);
    const left = Math.max(...ticks.map((tick) => pen.measureText(rate(tick)).width)) + 10;
    const area = { left, right: box.width - 4, top: 8, bottom: box.height - 22 };
    const age = this.samples.length > 0 ? (this.now - this.samples[0].at) / 1000 : 0;
    const [span, step] = SCALES.find(([seconds]) => age <= seconds) ?? SCALES[SCALES.length - 1];
    area.x = (at) => area.right - ((this.now - at) / (1000 * span)) * (area.right - area.left);
    area.y = (value) => area.bottom - (value / this.top) * (area.bottom - area.top);
    pen.strokeStyle = color('--line');
    pen.fillStyle = color('--soft');
    pen.lineWidth = 1;
    pen.textBaseline = 'middle';
    pen.textAlign = 'right';
    for (const tick of ticks) {
      const y = Math.round(area.y(tick)) + 0.5;
      pen.beginPath();
      pen.moveTo(area.left, y);
      pen.lineTo(area.right, y);
      pen.stroke();
      pen.fillText(rate(tick), left - 8, y);
    }
    pen.textBaseline = 'alphabetic';
    const every = area.right - area.left < 330 ? 2 * step : step;
    for (let seconds = 0; seconds <= span; seconds += every) {
      pen.textAlign = seconds === 0 ? 'right' : seconds === span ? 'left' : 'center';
      const label = step < 60 ? `−${seconds} s` : `−${seconds / 60} min`;
      pen.fillText(seconds === 0 ? 'now' : label, area.x(this.now - seconds * 1000), box.height - 5);
    }
    return area;
  }

  plot(pen, area, spans) {
    const color = colors();
    pen.save();
    pen.beginPath();
    pen.rect(area.left, 0, area.right - area.left, area.bottom + 1);
    pen.clip();
    pen.lineJoin = 'round';
    this.series.forEach((series, number) => {
      pen.fillStyle = pen.strokeStyle = color(series.color);
      pen.lineWidth = 2;
      for (const [from, to] of stretches(this.samples)) {
        const line = (end, first, last, step) => {
          for (let i = first; i !== last; i += step) {
            pen.lineTo(area.x(this.samples[i].at), area.y(spans[i][number][end]));
          }
        };
        pen.beginPath();
        line(1, from, to, 1);
        if (this.stacked) {
          line(0, to - 1, from - 1, -1);
          pen.fill();
        } else {
          pen.stroke();
        }
      }
    });
    pen.restore();
  }

  // A line at what is pointed at; returns which sample that is.
  mark(pen, area, spans) {
    if (this.pointed === null || this.samples.length === 0) return null;
    const nearest = this.nearest(area.x);
    const x = area.x(this.samples[nearest].at);
    const color = colors();
    pen.strokeStyle = color('--soft');
    pen.lineWidth = 1;
    pen.beginPath();
    pen.moveTo(x, area.top);
    pen.lineTo(x, area.bottom);
    pen.stroke();
    if (!this.stacked) {
      this.series.forEach((series, number) => {
        pen.fillStyle = color(series.color);
        pen.beginPath();
        pen.arc(x, area.y(spans[nearest][number][1]), 3.5, 0, 2 * Math.PI);
        pen.fill();
      });
    }
    return nearest;
  }

  say(pen, area, text) {
    pen.fillStyle = colors()('--soft');
    pen.textAlign = 'center';
    pen.fillText(text, (area.left + area.right) / 2, (5 * area.top + 3 * area.bottom) / 8 + 4);
  }

  describe(at) {
    const sample = this.samples[at];
    for (const [key, item] of this.items) {
      if (!this.series.some((series) => series.key === key)) {
        item.row.remove();
        this.items.delete(key);
      }
    }
    for (const { key, label, color, title } of this.series) {
      let item = this.items.get(key);
      if (!item) {
        const row = element('li');
        const swatch = element('i', 'key');
        swatch.style.setProperty('--key', `var(${color})`);
        item = { row, value: element('b') };
        if (title) row.title = title;
        row.append(swatch, visible(label), ' ', item.value);
        this.items.set(key, item);
        this.legend.append(row);
      }
      write(item.value, sample ? rate(sample.values.get(key) ?? 0) : '–');
    }
  }
}

function colors() {
  const style = getComputedStyle(document.documentElement);
  return (name) => style.getPropertyValue(name);
}

// The parts of the samples without a gap: [from, to).
function stretches(samples) {
  const parts = [];
  samples.forEach((sample, i) => {
    if (i === 0 || sample.gap) parts.push([i, i]);
    parts[parts.length - 1][1] = i + 1;
  });
  return parts;
}

// A round number above the greatest value, with some air, that four lines divide well.
function niceTop(most) {
  if (most <= 0) return 4;
  if (most < 1.8) return 2;
  const power = 10 ** Math.floor(Math.log10(most * 1.1));
  return [1, 2, 4, 6, 8, 10].map((step) => step * power).find((top) => top >= most * 1.1) ?? 10 * power;
}
