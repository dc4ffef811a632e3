// The tables. Rows are kept as long as what they show is there, so that only figures change.

const MAX_ROWS = 200;

// How many backends of a cluster are shown before someone asks for all.
const FIRST_ROWS = 12;

// Clusters with more backends than this are folded while nothing is wrong with them, if there are many.
const MANY = 30;

// What is shown, and how: kept while the page is open.
const view = { search: '', sort: 'trouble', folded: new Map(), whole: new Set() };

// Backends in these states are looked at first, the worst before the others.
const URGENCY = { down: 0, ejected: 1, draining: 2, unchecked: 3, up: 4 };
const urgency = (backend) => URGENCY[backend.state] ?? 0;
const isTrouble = (backend) => backend.state === 'down' || backend.state === 'ejected';
const serves = (backend) => backend.state === 'up' || backend.state === 'unchecked';

// What clients are refused on purpose is no trouble.
const DELIBERATE = new Set(/* on purpose */[]);

// Brings rows in line with items: makes, fills, orders and removes them.
function rows(body, items, { key, make, fill }) {
  const kept = body.kept ??= new Map();
  const wanted = new Set();
  items.forEach((item, number) => {
    const id = key(item, number);
    wanted.add(id);
    let row = kept.get(id);
    if (!row) kept.set(id, row = make(item));
    if (body.children[number] !== row.element) body.insertBefore(row.element, body.children[number] ?? null);
    fill(row, item);
  });
  for (const [id, row] of kept) {
    if (wanted.has(id)) continue;
    row.element.remove();
    kept.delete(id);
  }
}

// A row with cells: the first is its head, the others are labelled for narrow screens.
function tableRow(labels) {
  const row = { element: element('tr'), cells: [] };
  row.element.setAttribute('role', 'row');
  labels.forEach(([label, className], number) => {
    const cell = element(number === 0 ? 'th' : 'td', className);
    cell.setAttribute('role', number === 0 ? 'rowheader' : 'cell');
    if (number === 0) cell.scope = 'row';
    else cell.dataset.label = label;
    row.cells.push(cell);
    row.element.append(cell);
  });
  return row;
}

function head(cell) {
  const [name, note] = [element('span'), element('small')];
  cell.append(name, note);
  return { name, note };
}

function meter(cell) {
  const [box, bar, text] = [element('div', 'meter'), element('i'), element('span')];
  bar.setAttribute('aria-hidden', 'true');
  box.append(bar, text);
  cell.append(box);
  // Without a part there is nothing that could be full.
  return (part, label) => {
    bar.hidden = part === null;
    bar.style.setProperty('--part', `${Math.min(100, part * 100)}%`);
    box.classList.toggle('full', part !== null && part > 0.9 && label.includes('/'));
    write(text, label);
  };
}

// At most this many rows; the rest is counted below the table.
function limited(table, items, most) {
  const more = table.nextElementSibling;
  more.hidden = items.length <= most;
  if (!more.hidden) {
    const text = more.firstElementChild ?? more;
    write(text, `${count(items.length - most)} more${text === more ? ' are in the JSON document.' : '.'}`);
  }
  return items.slice(0, most);
}

function showListeners(listeners, rates) {
  const table = byId('listeners');
  const listed = limited(table, listeners, MAX_ROWS);
  rows(table.tBodies[0], listed, {
    key: (listener) => listener.name,
    make: () => {
      const row = tableRow([
        ['Listener'], ['Cluster', 'text'], ['Flows', 'wide'], ['Sent/s', 'number'],
        ['Replies/s', 'number'], ['Dropped/s', 'number'], ['Dropped (total)', 'number'],
      ]);
      row.head = head(row.cells[0]);
      row.meter = meter(row.cells[2]);
      return row;
    },
    fill: (row, listener) => {
      const [name, rate_of] = [visible(listener.name), rates.listeners.get(listener.name)];
      write(row.head.name, name);
      write(row.head.note, name === listener.address ? '' : listener.address);
      write(row.cells[1], visible(listener.cluster));
      // What goes one way makes no flows, and so has no limit of them.
      const hasFlows = listener.flows_max > 0;
      const flows = `${count(listener.flows_active)} / ${count(listener.flows_max)}`;
      row.meter(hasFlows ? listener.flows_active / listener.flows_max : null, hasFlows ? flows : '–');
      write(row.cells[3], rate(rate_of?.toBackend ?? null));
      write(row.cells[4], hasFlows ? rate(rate_of?.toClient ?? null) : '–');
      write(row.cells[5], rate(rate_of?.dropped ?? null));
      row.cells[5].classList.toggle('warn', (rate_of?.trouble ?? 0) > 0);
      write(row.cells[6], count(droppedBy(listener)));
    },
  });
}

// Whether a backend is one of those that are searched for.
function matches(cluster, backend) {
  const text = [cluster.name, backend.address, backend.name, backend.state, backend.reason].join(' ').toLowerCase();
  return view.search.split(/\s+/).every((word) => text.includes(word));
}

function sorted(cluster, backends, rates) {
  const rateOf = (backend, key) => rates.backends.get(backendKey(cluster, backend))?.[key] ?? 0;
  const by = {
    trouble: (a, b) => urgency(a) - urgency(b),
    order: () => 0,
    to: (a, b) => rateOf(b, 'smooth') - rateOf(a, 'smooth'),
    from: (a, b) => rateOf(b, 'from') - rateOf(a, 'from'),
    flows: (a, b) => b.flows_active - a.flows_active,
    address: (a, b) => a.address.localeCompare(b.address, 'en', { numeric: true }),
  }[view.sort];
  return [...backends].sort(by);
}

function showClusters(clusters, rates) {
  let found = 0;
  const listed = [];
  for (const cluster of clusters) {
    const backends = view.search ? cluster.backends.filter((b) => matches(cluster, b)) : cluster.backends;
    found += backends.length;
    if (!view.search || backends.length > 0) listed.push({ cluster, backends });
  }
  if (view.sort === 'trouble') {
    const worst = ({ cluster }) => cluster.backends.some(isTrouble) ? 0 : 1;
    listed.sort((a, b) => worst(a) - worst(b));
  }
  write(byId('found'), view.search ? `${count(found)} found` : '');
  rows(byId('clusters'), listed.slice(0, MAX_ROWS), {
    key: ({ cluster }) => cluster.name,
    make: ({ cluster }) => makeCluster(cluster.name),
    fill: (row, { cluster, backends }) => fillCluster(row, cluster, backends, clusters.length, rates),
  });
}

function makeCluster(name) {
  const card = byId('cluster').content.firstElementChild.cloneNode(true);
  const find = (selector) => card.querySelector(selector);
  const row = {
    element: card, table: find('table'), name: find('.cluster-name'), about: find('.cluster-about'),
    trouble: find('.cluster-trouble'), fold: find('.fold'), all: find('.more button'),
  };
  row.fold.addEventListener('click', () => {
    view.folded.set(name, row.fold.getAttribute('aria-expanded') === 'true');
    refresh();
  });
  row.all.addEventListener('click', () => {
    view.whole.add(name);
    refresh();
  });
  return row;
}

function fillCluster(row, cluster, backends, clusters, rates) {
  write(row.name, visible(cluster.name));
  const all = cluster.backends;
  const [up, bad] = [all.filter(serves).length, all.filter(isTrouble).length];
  const how = { 'one-way': 'one-way, no answers · ', 'fan-out': 'fan-out, a copy to each · ' }[cluster.mode] ?? '';
  const balance = cluster.mode === 'fan-out' ? '' : `${visible(cluster.balance)} · `;
  write(row.about, `${how}${balance}${up} of ${count(all.length)} in service`);
  write(row.trouble, bad > 0 ? `${count(bad)} down or ejected` : '');
  const quiet = bad === 0 && !view.search && all.length > MANY && clusters > 1;
  const folded = view.search ? false : view.folded.get(cluster.name) ?? quiet;
  row.fold.setAttribute('aria-expanded', String(!folded));
  row.table.hidden = folded;
  row.table.classList.toggle('silent', cluster.mode === 'one-way');
  const most = view.whole.has(cluster.name) || view.search ? MAX_ROWS : FIRST_ROWS;
  showBackends(row.table, cluster, folded ? [] : sorted(cluster, backends, rates), most, rates);
  write(row.all, `Show ${count(Math.min(backends.length, MAX_ROWS))}`);
  row.all.hidden = most === MAX_ROWS;
}

function showBackends(table, cluster, backends, most, rates) {
  const share = shares(cluster, rates);
  // An equal share is half a bar, unless one has more than twice as much: of 700 a hundredth is much.
  const longest = Math.min(1, Math.max(2 / Math.max(1, cluster.backends.filter(serves).length), ...share.values()));
  rows(table.tBodies[0], limited(table, backends, most), {
    key: (backend) => backend.address,
    make: () => {
      const row = tableRow([
        ['Backend'], ['State', 'state-cell'], ['Share', 'wide'], ['Flows', 'number'], ['Sent/s', 'number'],
        ['Replies/s', 'number'], ['First answer', 'number'], ['Weight', 'number'],
      ]);
      row.head = head(row.cells[0]);
      row.state = element('span', 'state');
      row.cells[1].append(row.state);
      row.meter = meter(row.cells[2]);
      return row;
    },
    fill: (row, backend) => {
      const rate_of = rates.backends.get(backendKey(cluster, backend));
      write(row.head.name, backend.address);
      const missed = backend.datagrams_dropped ?? 0;
      const notes = [
        backend.name ? visible(backend.name) : '', backend.backup ? 'backup' : '',
        missed > 0 ? `not sent ${count(missed)}` : '', serves(backend) ? '' : why(backend),
      ];
      write(row.head.note, notes.filter(Boolean).join(' · '));
      write(row.state, visible(backend.state));
      row.state.dataset.state = backend.state;
      row.state.title = why(backend);
      const part = share.get(backend.address);
      const of = cluster.mode === 'fan-out' ? 'each' : part === undefined ? '–' : percent(part);
      row.meter(cluster.mode === 'fan-out' ? null : (part ?? 0) / longest, of);
      write(row.cells[3], cluster.mode === 'one-way' ? '–' : count(backend.flows_active));
      write(row.cells[4], rate(rate_of?.to ?? null));
      write(row.cells[5], cluster.mode === 'one-way' ? '–' : rate(rate_of?.from ?? null));
      const answers = backend.first_answers;
      write(row.cells[6], millis(quantile(answers, 0.5)));
      row.cells[6].title = answers?.count > 0 ? `95 % within ${millis(quantile(answers, 0.95))}` : '';
      const configured = backend.configured_weight;
      write(row.cells[7], count(backend.weight) + (configured === undefined ? '' : ` (${count(configured)})`));
      row.cells[7].classList.toggle('usual', backend.weight === 1 && configured === undefined);
      row.cells[7].title = configured === undefined ? '' : `set by an operator; the configuration says ${configured}`;
    },
  });
}

// Why a backend is in its state, since when, until when.
function why(backend) {
  const since = backend.since_seconds === undefined ? '' : `for ${duration(backend.since_seconds)}`;
  const until = backend.until_seconds === undefined ? '' : `${duration(backend.until_seconds)} left`;
  return [backend.reason ? visible(backend.reason) : '', since, until].filter(Boolean).join(', ');
}

// What an operator should see to, the worst first.
function showTrouble(status) {
  const troubles = status.clusters.flatMap((cluster) => cluster.backends
    .filter((backend) => !serves(backend))
    .map((backend) => ({
      id: backendKey(cluster, backend), what: `${visible(cluster.name)}/${backend.address}`, rank: urgency(backend),
      note: backend.name ? visible(backend.name) : '', state: backend.state, why: backend.reason,
      since: backend.since_seconds, until: backend.until_seconds,
    })));
  for (const name of (status.names ?? []).filter((name) => !name.resolves)) {
    troubles.push({
      id: `name ${name.name}`, what: visible(name.name), note: 'host name', state: 'unresolved', rank: 1,
      why: name.reason, since: name.since_seconds,
    });
  }
  const reload = status.process?.last_reload;
  if (reload && !reload.ok) {
    troubles.push({
      id: 'reload', what: 'Reload', note: visible(status.process.config), state: 'refused', rank: 1,
      why: reload.notes.join('; '), since: status.process.now - reload.at,
    });
  }
  troubles.sort((a, b) => a.rank - b.rank);
  const card = byId('trouble');
  card.hidden = troubles.length === 0;
  const [bad, drained] = [troubles.filter((t) => t.rank < 2).length, troubles.filter((t) => t.rank >= 2).length];
  card.classList.toggle('alert', bad > 0);
  write(byId('trouble-about'), [bad && `${count(bad)} in trouble`, drained && `${count(drained)} draining`].filter(Boolean).join(', '));
  const table = card.querySelector('table');
  rows(table.tBodies[0], limited(table, troubles, FIRST_ROWS), {
    key: (trouble) => trouble.id,
    make: () => {
      const row = tableRow([['What'], ['State', 'state-cell'], ['Why', 'text why'], ['Since', 'number'], ['Time left', 'number']]);
      row.head = head(row.cells[0]);
      row.state = element('span', 'state');
      row.cells[1].append(row.state);
      return row;
    },
    fill: (row, trouble) => {
      write(row.head.name, trouble.what);
      write(row.head.note, trouble.note);
      write(row.state, trouble.state);
      row.state.dataset.state = trouble.state;
      write(row.cells[2], visible(trouble.why ?? '–'));
      write(row.cells[3], trouble.since === undefined ? '–' : duration(trouble.since));
      write(row.cells[4], trouble.until === undefined ? '–' : duration(trouble.until));
    },
  });
}

function showEvents(events, now) {
  byId('happened').hidden = events.length === 0;
  rows(byId('events'), events.slice(0, 12), {
    key: (event, number) => `${event.at} ${event.subject} ${number}`,
    make: () => {
      const row = { element: element('li'), when: element('time'), state: element('span', 'state'), text: element('span') };
      row.element.append(row.when, row.state, row.text);
      return row;
    },
    fill: (row, event) => {
      write(row.when, `${duration(Math.max(0, now - event.at))} ago`);
      row.when.title = new Date(event.at * 1000).toLocaleString();
      write(row.state, visible(event.kind));
      row.state.dataset.state = event.kind;
      write(row.text, [event.subject, event.text].filter(Boolean).map(visible).join(': '));
    },
  });
}

// Each backend's part of what goes to its cluster in these seconds; of its flows where nothing goes.
function shares(cluster, rates) {
  const smooth = (backend) => rates.backends.get(backendKey(cluster, backend))?.smooth ?? 0;
  const flows = (backend) => backend.flows_active;
  for (const measure of [smooth, flows]) {
    const sum = cluster.backends.reduce((total, backend) => total + measure(backend), 0);
    if (sum > 0.05) return new Map(cluster.backends.map((b) => [b.address, measure(b) / sum]));
  }
  return new Map();
}

const backendKey = (cluster, backend) => JSON.stringify([cluster.name, backend.address]);

function droppedBy(listener) {
  return [listener.to_backend, listener.to_client]
    .flatMap((ledger) => Object.values(ledger?.dropped ?? {}))
    .reduce((sum, traffic) => sum + traffic.datagrams, listener.socket_drops ?? 0);
}

// The same without what clients are refused on purpose.
function troubleBy(listener) {
  return [listener.to_backend, listener.to_client]
    .flatMap((ledger) => Object.entries(ledger?.dropped ?? {}))
    .filter(([reason]) => !DELIBERATE.has(reason))
    .reduce((sum, [, traffic]) => sum + traffic.datagrams, listener.socket_drops ?? 0);
}
