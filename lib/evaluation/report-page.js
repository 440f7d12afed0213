// What moves on a report's page: the dots of the chart, and the step-by-step view. Runs in the browser.
(() => {
  const get = (id) => document.getElementById(id);

  // The chart: the dot nearest to a click or tap, or the next one by arrow keys, is named below it.
  const chart = get('chart');
  const dots = [...chart.querySelectorAll('.dot')].map((dot) => {
    const circle = dot.querySelector('circle');
    return { dot, x: Number(circle.getAttribute('cx')), y: Number(circle.getAttribute('cy')) };
  });
  dots.sort((a, b) => a.x - b.x || a.y - b.y);
  let chosen = -1;
  const choose = (i) => {
    if (dots.length === 0) return;
    if (chosen >= 0) dots[chosen].dot.classList.remove('chosen');
    chosen = (i + dots.length) % dots.length;
    dots[chosen].dot.classList.add('chosen');
    get('setting').textContent = dots[chosen].dot.getAttribute('aria-label');
  };
  const nearest = (event) => {
    const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse());
    const distances = dots.map(({ x, y }) => (x - place.x) ** 2 + (y - place.y) ** 2);
    return distances.indexOf(Math.min(...distances));
  };
  chart.addEventListener('click', (event) => choose(nearest(event)));
  chart.addEventListener('pointermove', (event) => {
    if (event.pointerType === 'mouse' && event.target.closest('.dot')) choose(nearest(event));
  });
  chart.addEventListener('keydown', (event) => {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    choose(chosen < 0 && by < 0 ? dots.length - 1 : chosen + by);
  });

  // Step by step.
  const views = JSON.parse(get('traces').textContent);
  if (views.length === 0) return;
  const [choice, slider, play, shown, expected, lanes] = ['choice', 'slider', 'play', 'shown', 'expected', 'lanes'].map(
    get,
  );
  let timer = null;
  views.forEach((view, i) => choice.add(new Option(view.prompt, i)));

  const element = (parent, name, className, text = '') => {
    const made = parent.appendChild(document.createElement(name));
    made.className = className;
    made.textContent = text;
    return made;
  };
  /** Columns that a text takes in a monospace font. */
  const columns = (text) =>
    [...text].reduce((sum, c) => sum + (/[\u1100-\uffdc\u{1f000}-\u{3ffff}]/u.test(c) ? 2 : 1), 0);

  const isEnd = (text) => /^<.*>$/.test(text);
  /** A cell for each token; behind the text, one for all ends in a row that the same pass decides. */
  const cellsOf = ({ tokens, unmaskedAt }) => {
    let ends = tokens.length;
    while (ends > 0 && isEnd(tokens[ends - 1])) ends--;
    const cells = [];
    tokens.forEach((text, i) => {
      const last = cells[cells.length - 1];
      if (i > ends && last.at === unmaskedAt[i]) last.count++;
      else cells.push({ text, at: unmaskedAt[i], count: 1 });
    });
    return cells;
  };

  /** One setting's answer after so many passes. A masked word is not in the page: its cell has only its width. */
  const drawLane = (lane, step) => {
    const row = document.createElement('div');
    row.className = `lane${lane.bold ? ' bold' : ''}`;
    const who = element(row, 'div', 'who');
    element(who, 'span', '', lane.name);
    const state = element(who, 'span', '');
    if (step < lane.nfe) state.textContent = `pass ${step}`;
    else {
      const verdict = lane.score === null ? '' : lane.score >= 0.5 ? '\u2713 right, ' : '\u2717 wrong, ';
      state.textContent = verdict + lane.nfe + (lane.nfe === 1 ? ' pass' : ' passes');
      if (lane.score !== null) state.className = lane.score >= 0.5 ? 'right' : 'wrong';
    }
    const tokens = element(row, 'div', 'tokens');
    tokens.setAttribute('aria-hidden', 'true');
    const heard = [];
    for (const { text, at, count } of cellsOf(lane)) {
      const isDecided = at > 0 && at <= step;
      const end = isEnd(text);
      const word = text.replace(/^<\|?(.*?)\|?>$/, '$1').trim();
      const times = count > 1 ? ` \u00d7${count}` : '';
      const cell = element(tokens, 'span', isDecided ? (at === step ? 'new' : '') + (end ? ' eos' : '') : 'mask');
      cell.style.minWidth = `calc(${columns(word + times)}ch + 28px)`;
      if (isDecided) {
        cell.textContent = word + times;
        element(cell, 'sup', '', at);
        cell.style.background = `var(--s${(at - 1) % 8})`;
        if (!end) heard.push(word);
      } else {
        cell.textContent = times || '\u00a0';
        if (heard[heard.length - 1] !== '\u2026') heard.push('\u2026');
      }
    }
    element(row, 'p', 'unseen', heard.join(' '));
    return row;
  };
  const draw = () => {
    const view = views[choice.value];
    const step = Number(slider.value);
    shown.textContent = `after pass ${step} of ${slider.max}`;
    expected.textContent = view.expected ? `A right answer: ${view.expected}` : '';
    lanes.replaceChildren();
    let run = '';
    for (const lane of view.lanes) {
      if (lane.run !== run) element(lanes, 'h3', 'run', lane.run);
      run = lane.run;
      lanes.append(drawLane(lane, step));
    }
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = 'Play';
  };
  const open = () => {
    stop();
    slider.max = Math.max(...views[choice.value].lanes.map((lane) => lane.nfe));
    slider.value = 1;
    draw();
  };
  play.addEventListener('click', () => {
    if (timer) return stop();
    if (slider.value === slider.max) slider.value = 0;
    play.textContent = 'Pause';
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      draw();
      if (slider.value === slider.max) stop();
    }, 700);
    draw();
  });
  choice.addEventListener('change', open);
  slider.addEventListener('input', () => {
    stop();
    draw();
  });
  // The first prompt shown is one that the settings differ in most: where all need one pass, there is nothing to watch.
  const spread = ({ lanes: settings }) => {
    const passes = settings.map((lane) => lane.nfe);
    return Math.max(...passes) - Math.min(...passes);
  };
  choice.value = views.reduce((best, view, i) => (spread(view) > spread(views[best]) ? i : best), 0);
  open();
})();
