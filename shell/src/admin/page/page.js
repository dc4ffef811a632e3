// Asks for /status every second, and shows what it says and how it changes. What was before the page
// was opened the process has kept: /history.

// What the guide says of each reason to drop a datagram.
const REASONS = /* reasons */{};

const EVERY = 1000;
const FETCH_TIMEOUT = 4000;
const KERNEL = 'kernel (full buffer, bad checksum)';
const MAX_REASONS = 8;
const GREYS = 4;

const traffic = new Chart('traffic', { stacked: false });
const drops = new Chart('drops', { stacked: true, quiet: 'no drops' });
const directions = [
  { key: 'toBackend', label: 'to backends', color: '--to-backend' },
  { key: 'toClient', label: 'to clients', color: '--to-client' },
];

let last = null; // The last report: { at, document }.
let rates = noRates();
let history = []; // { at, gap, values } of both directions.
let dropHistory = []; // The same by reason.
let reasons = []; // Those seen so far, in the order in which they keep their colors.
let failures = 0;
let timer = null;
let request = null;

function noRates() {
  return { listeners: new Map(), backends: new Map(), bytes: null };
}

// How much a counter grew in a second. A counter that fell begins again.
function growth(before, now, seconds) {
  return before === undefined || now < before ? 0 : (now - before) / seconds;
}

function measure(before, now, seconds) {
  const measured = noRates();
  const old = new Map(before.listeners.map((listener) => [listener.name, listener]));
  for (const listener of now.listeners) {
    const was = old.get(listener.name);
    const of = (read) => growth(was && read(was), read(listener), seconds);
    measured.listeners.set(listener.name, {
      toBackend: of((l) => l.to_backend.forwarded.datagrams),
      toClient: of((l) => l.to_client.forwarded.datagrams),
      dropped: of(droppedBy),
      trouble: of(troubleBy),
    });
  }
  const oldBackends = new Map(before.clusters.flatMap((cluster) =>
    cluster.backends.map((backend) => [backendKey(cluster, backend), backend])));
  const weight = Math.exp(-seconds / 5);
  for (const cluster of now.clusters) {
    for (const backend of cluster.backends) {
      const key = backendKey(cluster, backend);
      const was = oldBackends.get(key);
      const to = growth(was?.datagrams_to, backend.datagrams_to, seconds);
      const from = growth(was?.datagrams_from, backend.datagrams_from, seconds);
      const smooth = rates.backends.get(key)?.smooth ?? to;
      measured.backends.set(key, { to, from, smooth: weight * smooth + (1 - weight) * to });
    }
  }
  const bytes = (direction) => growth(
    before.counters.bytes_forwarded[direction], now.counters.bytes_forwarded[direction], seconds);
  measured.bytes = { toBackend: bytes('to_backend'), toClient: bytes('to_client') };
  return measured;
}

// What was dropped so far, by reason.
function dropsByReason(document) {
  const sums = new Map();
  const add = (reason, datagrams) => sums.set(reason, (sums.get(reason) ?? 0) + datagrams);
  for (const listener of document.listeners) {
    for (const ledger of [listener.to_backend, listener.to_client]) {
      for (const [reason, dropped] of Object.entries(ledger.dropped)) add(reason, dropped.datagrams);
    }
    if (listener.socket_drops > 0) add(KERNEL, listener.socket_drops);
  }
  return sums;
}

function remember(at, gap, before, now, seconds) {
  const sum = (read) => [...rates.listeners.values()].reduce((total, of) => total + read(of), 0);
  const directed = new Map([['toBackend', sum((of) => of.toBackend)], ['toClient', sum((of) => of.toClient)]]);
  const old = dropsByReason(before);
  const byReason = new Map();
  for (const [reason, datagrams] of dropsByReason(now)) {
    const grew = growth(old.get(reason) ?? 0, datagrams, seconds);
    if (grew === 0) continue;
    if (!reasons.includes(reason)) reasons.push(reason);
    const place = reasons.indexOf(reason) < MAX_REASONS - 1 ? reason : 'others';
    byReason.set(place, (byReason.get(place) ?? 0) + grew);
  }
  history.push({ at, gap, values: directed });
  dropHistory.push({ at, gap, values: byReason });
  const isRecent = (sample) => at - sample.at <= SPAN + 5000;
  history = history.filter(isRecent);
  dropHistory = dropHistory.filter(isRecent);
}

function take(document, at) {
  const seconds = last ? (at - last.at) / 1000 : 0;
  // Another process, or the same one started again: what was seen before is no comparison.
  const isAnother = last && document.uptime_seconds + 1 < last.document.uptime_seconds;
  if (last && !isAnother && seconds > 0) {
    rates = measure(last.document, document, seconds);
    remember(at, seconds > 3 * EVERY / 1000, last.document, document, seconds);
  } else {
    rates = noRates();
  }
  last = { at, document };
}

function show() {
  const { document: status, at } = last;
  write(byId('version'), visible(status.version));
  write(byId('uptime'), `up ${duration(status.uptime_seconds)}`);
  showProcess(status.process ?? {});
  showTiles(status);
  showTrouble(status);
  showEvents(status.events ?? [], status.process?.now ?? 0);
  traffic.show(directions, history, at);
  const shown = reasons.filter((reason) => dropHistory.some((sample) => sample.values.has(reason)));
  const others = dropHistory.some((sample) => sample.values.has('others')) ? ['others'] : [];
  // What is refused on purpose is grey, each reason in another one; as is what has no colour of its own.
  const refused = reasons.filter((reason) => DELIBERATE.has(reason));
  const grey = (reason) => MAX_REASONS + (refused.indexOf(reason) + 1) % GREYS;
  const isPlain = (reason) => reason === 'others' || DELIBERATE.has(reason);
  const color = (reason) => isPlain(reason) ? grey(reason) : reasons.indexOf(reason) + 1;
  drops.show(
    [...shown, ...others].map((key) => ({
      key, label: DELIBERATE.has(key) ? `${key} (by configuration)` : key, color: `--c${color(key)}`, title: REASONS[key],
    })), dropHistory, at);
  showListeners(status.listeners, rates);
  showClusters(status.clusters, rates);
  const { datagrams_received: r, datagrams_forwarded: f, datagrams_dropped: d, datagrams_queued: q } =
    status.counters;
  const both = (figure) => count(figure.to_backend + figure.to_client);
  write(byId('ledger'), `${both(r)} datagrams received = ${both(f)} forwarded + ${both(d)} dropped + ${both(q)} queued`);
}

// Whose page this is.
function showProcess(process) {
  write(byId('host'), process.host ? visible(process.host) : '');
  write(byId('config'), process.config ? visible(process.config) : '');
  const reload = process.last_reload;
  const ago = reload ? duration(Math.max(0, process.now - reload.at)) : '';
  write(byId('reload'), reload ? `reload ${reload.ok ? 'ok' : 'refused'} ${ago} ago` : '');
  byId('reload').classList.toggle('bad', Boolean(reload) && !reload.ok);
  write(byId('clock'), process.now ? new Date(process.now * 1000).toISOString().slice(11, 19) + ' UTC' : '');
}

function showTiles(status) {
  const now = history.length > 0 && rates.bytes ? history[history.length - 1].values : null;
  write(byId('now-to-backend'), rate(now?.get('toBackend') ?? null));
  write(byId('now-to-client'), rate(now?.get('toClient') ?? null));
  write(byId('sub-to-backend'), rates.bytes ? bits(rates.bytes.toBackend) : '');
  write(byId('sub-to-client'), rates.bytes ? bits(rates.bytes.toClient) : '');
  const dropped = now && [...dropHistory[dropHistory.length - 1].values.values()].reduce((a, b) => a + b, 0);
  write(byId('now-dropped'), rate(dropped));
  const trouble = [...rates.listeners.values()].reduce((total, of) => total + of.trouble, 0);
  byId('now-dropped').classList.toggle('bad', trouble > 0);
  const soFar = [...dropsByReason(status).values()].reduce((a, b) => a + b, 0);
  write(byId('meant-dropped'), dropped > trouble ? `${rate(dropped - trouble)}/s by configuration` : '');
  write(byId('sub-dropped'), `${count(soFar)} in total`);
  const sum = (read) => status.listeners.reduce((total, listener) => total + read(listener), 0);
  write(byId('now-flows'), count(sum((listener) => listener.flows_active)));
  write(byId('sub-flows'), `limit ${count(sum((listener) => listener.flows_max))}`);
  const backends = status.clusters.flatMap((cluster) => cluster.backends);
  const inState = (state) => backends.filter((backend) => backend.state === state).length;
  write(byId('now-backends'), count(backends.filter(serves).length));
  write(byId('unit-backends'), `of ${count(backends.length)} in service`);
  const told = (states) => states.filter((state) => inState(state) > 0).map((state) => `${count(inState(state))} ${state}`).join(', ');
  write(byId('bad-backends'), told(['down', 'ejected']));
  write(byId('sub-backends'), told(['draining', 'unchecked']));
}

function connection(state, text) {
  const pill = byId('connection');
  pill.dataset.state = byId('main').dataset.state = state;
  write(pill, text);
  const up = last ? ` · ${byId('now-to-backend').textContent}/s` : '';
  document.title = state === 'lost' ? '✕ Flowgate' : `Flowgate${state === 'live' ? up : ''}`;
}

async function poll() {
  const started = performance.now();
  request = new AbortController();
  const mine = request;
  const timeout = setTimeout(() => mine.abort(), FETCH_TIMEOUT);
  try {
    const response = await fetch('/status', { cache: 'no-store', signal: mine.signal });
    if (!response.ok) throw new Error(await response.text());
    const status = await response.json();
    if (mine !== request) return;
    failures = 0;
    take(status, performance.now());
    show();
    connection('live', 'live');
  } catch (error) {
    if (mine !== request) return;
    failures += 1;
    const since = last ? ` for ${duration((performance.now() - last.at) / 1000)}` : '';
    connection('lost', `no answer${since}`);
  } finally {
    clearTimeout(timeout);
  }
  const pause = EVERY * Math.min(5, Math.max(1, failures));
  timer = setTimeout(poll, Math.max(200, pause - (performance.now() - started)));
}

// Shows again what is known, after someone has asked to see it otherwise.
function refresh() {
  if (last) show();
}

byId('search').addEventListener('input', () => {
  view.search = byId('search').value.trim().toLowerCase();
  refresh();
});
byId('sort').addEventListener('change', () => {
  view.sort = byId('sort').value;
  refresh();
});
byId('tools').addEventListener('submit', (event) => event.preventDefault());

// Nobody looks at a hidden tab: it asks nothing until it is seen again.
document.addEventListener('visibilitychange', () => {
  clearTimeout(timer);
  request?.abort();
  request = null;
  if (document.hidden) connection('paused', 'paused');
  else poll();
});

// What the process has kept of the last minutes, each sample { age, to_backend, to_client, dropped }.
async function recall() {
  try {
    const response = await fetch('/history', { cache: 'no-store' });
    if (!response.ok) return;
    const now = performance.now();
    for (const { age, to_backend, to_client, dropped } of await response.json()) {
      const at = now - 1000 * age;
      const byReason = new Map();
      for (const [reason, grew] of Object.entries(dropped)) {
        if (!reasons.includes(reason)) reasons.push(reason);
        const place = reasons.indexOf(reason) < MAX_REASONS - 1 ? reason : 'others';
        byReason.set(place, (byReason.get(place) ?? 0) + grew);
      }
      history.push({ at, gap: false, values: new Map([['toBackend', to_backend], ['toClient', to_client]]) });
      dropHistory.push({ at, gap: false, values: byReason });
    }
  } catch {
    // Without it the charts begin now.
  }
}

if (document.hidden) connection('paused', 'paused');
else recall().then(poll);
