'use strict';

// Numbers, times and names as people read them.

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat('en', { notation: 'compact', maximumSignificantDigits: 3 });

function count(number) {
  return number < 1e6 ? whole.format(number) : short.format(number);
}

function rate(number) {
  if (number === null || !Number.isFinite(number)) return '–';
  if (number > 0 && number < 0.1) return '< 0.1';
  if (number < 9.95) return String(Math.round(number * 10) / 10);
  return number < 1e5 ? whole.format(number) : short.format(number);
}

function bits(bytes) {
  let value = bytes * 8;
  for (const unit of ['bit/s', 'kbit/s', 'Mbit/s', 'Gbit/s']) {
    if (value < 999.5 || unit === 'Gbit/s') {
      return `${value < 9.95 ? Math.round(value * 10) / 10 : Math.round(value)} ${unit}`;
    }
    value /= 1000;
  }
}

function percent(part) {
  if (part > 0 && part < 0.001) return '< 0.1 %';
  const value = part * 100;
  return `${value < 9.95 ? Math.round(value * 10) / 10 : Math.round(value)} %`;
}

function duration(seconds) {
  const s = Math.floor(seconds), m = Math.floor(s / 60), h = Math.floor(m / 60), d = Math.floor(h / 24);
  if (d > 0) return `${d} d ${h % 24} h`;
  if (h > 0) return `${h} h ${m % 60} min`;
  return m > 0 ? `${m} min ${s % 60} s` : `${s} s`;
}

// Below which time a part of the first answers came, as far as buckets say: `null` where there were none,
// and infinity beyond the last bucket.
function quantile(answers, part) {
  if (!answers || answers.count === 0) return null;
  const wanted = answers.count * part;
  let [from, before] = [0, 0];
  for (const [to, within] of answers.buckets) {
    if (within >= wanted) return from + (to - from) * (wanted - before) / Math.max(1, within - before);
    [from, before] = [to, within];
  }
  return Infinity;
}

function millis(seconds) {
  if (seconds === null) return '–';
  if (seconds === Infinity) return '> 5 s';
  return seconds < 1 ? `${(seconds * 1000).toPrecision(2)} ms` : `${seconds.toPrecision(2)} s`;
}

// Names may hold any character. Those that cannot be seen, or that turn the text around, are shown
// as the log shows them.
function visible(name) {
  return String(name).replace(
    /[\p{Cc}\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/gu,
    (c) => c === '\n' ? '\\n' : c === '\t' ? '\\t' : c === '\r' ? '\\r' : `\\u{${c.codePointAt(0).toString(16)}}`,
  );
}

// Writes only what has changed, so that a selection stays.
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

const byId = (id) => document.getElementById(id);
