// Without this script the gallery shows all samples side by side, and each links to its file.
{
  const byId = name => document.getElementById(name);
  const [gallery, more, dialog, controls] = ['.gallery', '.more', 'dialog', '.controls'].map(q => document.querySelector(q));
  const [filter, set, from, to, score, order, view, flip, count, table, cut, step] = [
    'filter', 'set', 'from', 'to', 'score', 'order', 'view', 'flip', 'count', 'by-prompt', 'cut', 'step'].map(byId);
  const columns = JSON.parse(gallery.dataset.columns), scores = JSON.parse(gallery.dataset.scores);
  const few = 24;
  const text = value => value === null || value === undefined ? 'n/a'
    : Number(value.toPrecision(4)).toString().replace('-', '−');
  const signed = value => Number.isFinite(value) ? (value > 0 ? '+' : '') + text(value) : 'n/a';

  const cards = [...gallery.children].map((element, index) => {
    const pictures = new Map([...element.querySelectorAll('.picture')].map(p => [Number(p.dataset.column), p]));
    const { set: name, prompt, table: values, steps: kept } = element.dataset;
    return { element, index, pictures, places: [...pictures.keys()], set: name, prompt, table: JSON.parse(values), steps: JSON.parse(kept || 'null') };
  });
  let limit = few, shown = [], open = 0;

  const chosen = () => from ? [Number(from.value), Number(to.value)] : [0, 0];
  const valueOf = (card, column, row) => (card.table[row] || [])[card.places.indexOf(column)] ?? NaN;
  // NaN where one of the two has no value: such a sample stands last in any order by gain
  const gainOf = card => score ? valueOf(card, chosen()[1], score.value) - valueOf(card, chosen()[0], score.value) : NaN;

  function byGain(sign, gain) {
    return (a, b) => (Number.isNaN(gain(a)) - Number.isNaN(gain(b))) || sign * (gain(a) - gain(b)) || a.index - b.index;
  }

  function refresh() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean), sign = order ? Number(order.value) : 0;
    const wanted = cards.filter(card => (!set.value || card.set === set.value)
      && words.every(word => card.prompt.toLowerCase().includes(word)));
    if (sign) wanted.sort(byGain(sign, gainOf));
    shown = wanted.slice(0, limit);
    cards.forEach(card => { card.element.hidden = true; });
    shown.forEach(card => { card.element.hidden = false; });
    gallery.append(...shown.map(card => card.element));
    const [a, b] = chosen();
    for (const card of cards) for (const [column, picture] of card.pictures) {
      picture.classList.toggle('a', column === a);
      picture.classList.toggle('b', column === b && a !== b);
    }
    more.hidden = wanted.length <= limit;
    more.textContent = `Show all ${wanted.length}`;
    count.value = `${shown.length} of ${cards.length} shown`;
    if (table && table.open) tabulate(wanted);
  }

  // one row for each prompt: means over its samples
  function tabulate(wanted) {
    const [a, b] = chosen(), groups = new Map();
    for (const card of wanted) {
      const key = `${card.set}\n${card.prompt}`, values = [a, b].map(c => valueOf(card, c, score.value));
      if (!groups.has(key)) groups.set(key, { prompt: card.prompt, index: card.index, sums: [0, 0], n: 0 });
      const group = groups.get(key);
      if (values.some(Number.isNaN)) continue;
      group.n += 1;
      values.forEach((value, i) => { group.sums[i] += value; });
    }
    const gain = group => group.n ? (group.sums[1] - group.sums[0]) / group.n : NaN;
    const rows = [...groups.values()].sort(byGain(Number(order.value) || -1, gain));
    table.querySelector('.from').textContent = columns[a];
    table.querySelector('.to').textContent = columns[b];
    table.querySelector('tbody').replaceChildren(...rows.map(group => {
      const row = document.createElement('tr'), button = document.createElement('button');
      button.type = 'button';
      button.textContent = group.prompt;
      button.addEventListener('click', () => { filter.value = group.prompt; refresh(); gallery.scrollIntoView(); });
      row.insertCell().append(button);
      const means = group.sums.map(sum => group.n ? sum / group.n : null);
      for (const value of [...means.map(text), signed(gain(group)), String(group.n)]) {
        const cell = row.insertCell();
        cell.className = 'number';
        cell.textContent = value;
      }
      return row;
    }));
  }

  function turn(on = flip.getAttribute('aria-pressed') !== 'true') {
    flip.setAttribute('aria-pressed', on);
    gallery.classList.toggle('flipped', on);
    if (gallery.dataset.view === 'side') look('flip');
  }

  function look(name) {
    view.value = gallery.dataset.view = name;
  }

  // ---- one sample, large

  function enlarge(index) {
    open = (index + shown.length) % shown.length;
    const card = shown[open], stage = dialog.querySelector('.stage');
    byId('title').textContent = card.prompt;
    byId('about').textContent = card.element.querySelector('small').textContent;
    const pair = [...new Set(chosen())].filter(column => card.pictures.has(column));
    stage.replaceChildren(...pair.map((column, place) => {
      const picture = card.pictures.get(column), image = document.createElement('img');
      image.src = picture.href;
      image.alt = picture.querySelector('img').alt;
      image.dataset.column = column;
      image.className = 'ab'[place];
      image.addEventListener('load', () => image.classList.toggle('pixels', image.naturalWidth <= 128));
      return image;
    }));
    byId('cut-label').hidden = pair.length < 2;
    pair.forEach((column, i) => { byId('cut-label').querySelector(['.from', '.to'][i]).textContent = columns[column]; });
    const most = Math.max(0, ...(card.steps || []).map(kept => kept.length));
    byId('step-label').hidden = !most;
    step.max = step.value = most;
    divide(cut.value);
    take();
    spell(card, pair);
    compare(card);
    if (!dialog.open) dialog.showModal();
  }

  function divide(share) {
    cut.value = share;
    dialog.querySelector('.stage').style.setProperty('--cut', `${cut.value}%`);
  }

  // the predictions of a step in the place of the samples; the last place is the samples themselves
  function take() {
    const card = shown[open], last = step.value === step.max;
    let name = 'sample';
    for (const image of dialog.querySelectorAll('.stage img')) {
      const column = Number(image.dataset.column), kept = (card.steps || [])[card.places.indexOf(column)] || [];
      const file = last ? null : kept[Number(step.value)];
      if (file) name = file.match(/step_0*(\d+)_of_0*(\d+)/).slice(1).join(' of ');
      image.src = file || card.pictures.get(column).href;
    }
    byId('step-name').textContent = last ? 'the sample' : `step ${name}`;
  }

  // letters of sequences, those that differ from the first column marked
  function spell(card, pair) {
    const texts = pair.map(column => card.pictures.get(column).dataset.text || '');
    dialog.querySelector('.letters').replaceChildren(...texts.filter(Boolean).map((letters, i) => {
      const line = document.createElement('p');
      line.append(Object.assign(document.createElement('b'), { textContent: columns[pair[i]] }), ' ');
      for (const [place, letter] of [...letters].entries()) {
        const differs = i && letter !== texts[0][place];
        line.append(differs ? Object.assign(document.createElement('mark'), { textContent: letter }) : letter);
      }
      return line;
    }));
  }

  function compare(card) {
    const cell = (tag, words) => Object.assign(document.createElement(tag), { textContent: words, className: 'number' });
    byId('values').hidden = !scores.length;
    byId('values').querySelector('thead tr').replaceChildren(document.createElement('th'), ...card.places.map(c => cell('th', columns[c])));
    byId('values').querySelector('tbody').replaceChildren(...scores.map((name, row) => {
      const line = document.createElement('tr');
      line.append(Object.assign(document.createElement('td'), { textContent: name }), ...card.table[row].map(v => cell('td', text(v))));
      return line;
    }));
  }

  // what was never scrolled to is on paper, too
  addEventListener('beforeprint', () => {
    for (const image of document.images) image.loading = 'eager';
  });
  gallery.addEventListener('click', event => {
    if (!event.target.closest('a') || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    enlarge(shown.findIndex(card => card.element === event.target.closest('.card')));
  });
  // the divider of a card follows the pointer
  gallery.addEventListener('pointermove', event => {
    const images = event.target.closest('.images');
    if (!images) return;
    const box = images.getBoundingClientRect();
    images.style.setProperty('--cut', `${100 * (event.clientX - box.left) / box.width}%`);
  });
  dialog.addEventListener('click', event => { if (event.target === dialog) dialog.close(); });
  cut.addEventListener('input', () => divide(cut.value));
  step.addEventListener('input', take);
  byId('previous').addEventListener('click', () => enlarge(open - 1));
  byId('next').addEventListener('click', () => enlarge(open + 1));
  byId('close').addEventListener('click', () => dialog.close());

  document.addEventListener('keydown', event => {
    const typing = event.target.closest('input:not([type=range]), select, textarea');
    if (event.ctrlKey || event.metaKey || event.altKey || typing) return;
    const key = event.key.toLowerCase(), sliding = event.target.closest('[type=range]');
    if (dialog.open) {
      if (key === 'arrowleft' && !sliding) enlarge(open - 1);
      else if (key === 'arrowright' && !sliding) enlarge(open + 1);
      else if (key === 'f') divide(Number(cut.value) >= 50 ? 0 : 100);
      else if (key === ',' || key === '.') { step.value = Number(step.value) + (key === '.' ? 1 : -1); take(); }
      return;
    }
    if (key === '/') { event.preventDefault(); filter.focus(); }
    else if (key === 'f' && flip) turn();
    else if (key === 'v' && view) look({ side: 'flip', flip: 'slide', slide: 'side' }[view.value]);
  });
  more.addEventListener('click', () => { limit = Infinity; refresh(); });
  for (const control of [set, from, to, score, order].filter(Boolean)) control.addEventListener('change', refresh);
  filter.addEventListener('input', refresh);
  if (view) view.addEventListener('change', () => look(view.value));
  if (flip) flip.addEventListener('click', () => turn());
  if (table) { table.hidden = false; table.addEventListener('toggle', refresh); }
  controls.addEventListener('submit', event => event.preventDefault());
  controls.hidden = false;
  document.querySelector('p.keys').hidden = false;
  refresh();
}
