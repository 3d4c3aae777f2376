// Values of a chart under the pointer, or by the arrow keys once it has the focus.
{
  const tip = document.querySelector('.tip');
  const number = value => Number(value.toPrecision(5)).toString().replace('-', '−');

  for (const svg of document.querySelectorAll('svg[data-chart]')) {
    const chart = JSON.parse(svg.dataset.chart);
    const [left, top, right, bottom] = chart.plot, [x0, x1, y0, y1] = chart.range;
    const across = x => left + (x - x0) / (x1 - x0) * (right - left);
    const up = y => bottom - (y - y0) / (y1 - y0) * (bottom - top);
    const places = chart.series.flatMap((series, s) => series.x.map((x, i) => ({ s, i, x, y: series.y[i] })));
    const marks = svg.querySelector('g').cloneNode(false);
    marks.setAttribute('class', 'marks');
    svg.append(marks);
    let here = null;

    // all series at one x, or the one point of a front
    function show(place) {
      here = place;
      const points = chart.kind === 'front' ? [place] : places.filter(other => other.x === place.x);
      marks.innerHTML = (chart.kind === 'front' ? '' : `<path class="cross" d="M${across(place.x)} ${top}V${bottom}"/>`)
        + points.map(p => `<circle class="s${chart.series[p.s].color}" cx="${across(p.x)}" cy="${up(p.y)}" r="4"/>`).join('');
      tip.replaceChildren(...lines(place, points));
      tip.hidden = false;
      const box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width;
      const x = box.left + across(place.x) * scale, y = box.top + up(points[0].y) * scale;
      tip.style.left = `${Math.max(8, Math.min(x + 12, innerWidth - tip.offsetWidth - 8))}px`;
      tip.style.top = `${Math.max(8, Math.min(y - tip.offsetHeight - 10, innerHeight - tip.offsetHeight - 8))}px`;
    }

    function lines(place, points) {
      const line = (text, color) => {
        const element = document.createElement('div');
        element.textContent = text;
        if (color !== undefined) element.className = `s${color}`;
        return element;
      };
      const series = chart.series[place.s];
      if (chart.kind === 'front') {
        const head = [series.label, (series.names || [])[place.i]].filter(Boolean).join(', ');
        return [line(head, series.color), line(`${chart.x} ${number(place.x)}`), line(`${chart.y} ${number(place.y)}`)];
      }
      const next = chart.kind === 'steps' && series.x[place.i + 1];
      const head = chart.kind === 'steps' ? `from ${number(place.x)}${next ? ` to ${number(next)}` : ''}`
        : (series.names || [])[place.i] || `${chart.x} ${number(place.x)}`;
      return [line(head), ...points.map(p => line(`${chart.series[p.s].label} ${number(p.y)}`, chart.series[p.s].color))];
    }

    function hide() {
      here = null;
      marks.replaceChildren();
      tip.hidden = true;
    }

    svg.addEventListener('pointermove', event => {
      const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
      const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
      const far = p => (across(p.x) - x) ** 2 + (chart.kind === 'front' ? (up(p.y) - y) ** 2 : 0);
      show(places.reduce((best, p) => far(p) < far(best) ? p : best));
    });
    svg.addEventListener('pointerleave', hide);
    svg.addEventListener('blur', hide);
    svg.addEventListener('keydown', event => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const order = chart.kind === 'front' ? places : [...places].sort((a, b) => a.x - b.x)
        .filter((p, i, all) => !i || p.x !== all[i - 1].x);
      const now = here ? order.findIndex(p => p === here || (chart.kind !== 'front' && p.x === here.x)) : step < 0 ? order.length : -1;
      show(order[Math.max(0, Math.min(order.length - 1, now + step))]);
    });
  }
  document.addEventListener('scroll', () => { tip.hidden = true; }, { passive: true });
}
