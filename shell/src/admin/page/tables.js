// The tables. Rows are kept as long as what they show is there, so that only figures change.

const MOST_ROWS = 200;

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
  return (part, label) => {
    bar.style.setProperty('--part', `${Math.min(100, part * 100)}%`);
    box.classList.toggle('full', part > 0.9 && label.includes('/'));
    write(text, label);
  };
}

// At most so many rows; if there are more, those first that an operator looks for.
function limited(table, items, isUrgent) {
  const more = table.nextElementSibling;
  more.hidden = items.length <= MOST_ROWS;
  if (more.hidden) return items;
  write(more, `${count(items.length - MOST_ROWS)} more are in the JSON document.`);
  return [...items.filter(isUrgent), ...items.filter((item) => !isUrgent(item))].slice(0, MOST_ROWS);
}

function showListeners(listeners, rates) {
  const table = byId('listeners');
  const listed = limited(table, listeners, (listener) => listener.flows_active > 0);
  rows(table.tBodies[0], listed, {
    key: (listener) => listener.name,
    make: () => {
      const row = tableRow([
        ['Listener'], ['Cluster', 'text'], ['Flows', 'wide'], ['To backends/s', 'number'],
        ['To clients/s', 'number'], ['Dropped/s', 'number'], ['All dropped', 'number'],
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
      const part = listener.flows_max > 0 ? listener.flows_active / listener.flows_max : 0;
      row.meter(part, `${count(listener.flows_active)} / ${count(listener.flows_max)}`);
      write(row.cells[3], rate(rate_of?.toBackend ?? null));
      write(row.cells[4], rate(rate_of?.toClient ?? null));
      write(row.cells[5], rate(rate_of?.dropped ?? null));
      row.cells[5].classList.toggle('warn', (rate_of?.dropped ?? 0) > 0);
      write(row.cells[6], count(droppedBy(listener)));
    },
  });
}

function showClusters(clusters, rates) {
  rows(byId('clusters'), clusters, {
    key: (cluster) => cluster.name,
    make: () => {
      const card = byId('cluster').content.firstElementChild.cloneNode(true);
      return { element: card, table: card.querySelector('table'), name: card.querySelector('.cluster-name'), about: card.querySelector('.cluster-about') };
    },
    fill: (row, cluster) => {
      write(row.name, visible(cluster.name));
      const up = cluster.backends.filter((backend) => backend.state === 'up').length;
      write(row.about, `${visible(cluster.balance)} · ${up} of ${cluster.backends.length} up`);
      showBackends(row.table, cluster, rates);
    },
  });
}

function showBackends(table, cluster, rates) {
  const share = shares(cluster, rates);
  rows(table.tBodies[0], limited(table, cluster.backends, (backend) => backend.state !== 'up'), {
    key: (backend) => backend.address,
    make: () => {
      const row = tableRow([
        ['Backend'], ['State', 'state-cell'], ['Share', 'wide'], ['Flows', 'number'], ['To it/s', 'number'],
        ['From it/s', 'number'], ['Weight', 'number'],
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
        missed > 0 ? `missed ${count(missed)}` : '',
      ];
      write(row.head.note, notes.filter(Boolean).join(' · '));
      write(row.state, visible(backend.state));
      row.state.dataset.state = backend.state;
      const part = share.get(backend.address);
      row.meter(part ?? 0, part === undefined ? '–' : percent(part));
      write(row.cells[3], count(backend.flows_active));
      write(row.cells[4], rate(rate_of?.to ?? null));
      write(row.cells[5], rate(rate_of?.from ?? null));
      write(row.cells[6], count(backend.weight));
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
    .reduce((sum, traffic) => sum + traffic.datagrams, (listener.socket_drops ?? 0) + (listener.upstream_socket_drops ?? 0));
}
