// The step-by-step view of a report: runs in the browser.
(() => {
  const views = JSON.parse(document.getElementById('traces').textContent);
  const get = (id) => document.getElementById(id);
  const [choice, slider, play, shown, lanes] = ['choice', 'slider', 'play', 'shown', 'lanes'].map(get);
  let timer = null;
  views.forEach((view, i) => choice.add(new Option(view.prompt, i)));
  const draw = () => {
    const view = views[choice.value],
      step = Number(slider.value);
    shown.textContent = `after pass ${step} of ${slider.max}`;
    lanes.replaceChildren(
      ...view.lanes.map((lane) => {
        const row = document.createElement('div');
        row.className = `lane${lane.bold ? ' bold' : ''}`;
        const who = row.appendChild(document.createElement('div'));
        who.className = 'who';
        const name = who.appendChild(document.createElement('span'));
        name.textContent = lane.label;
        const state = who.appendChild(document.createElement('span'));
        if (step < lane.nfe) state.textContent = `pass ${step}`;
        else {
          state.textContent =
            (lane.score === null ? '' : lane.score >= 0.5 ? '\u2713 right, ' : '\u2717 wrong, ') +
            lane.nfe +
            (lane.nfe === 1 ? ' pass' : ' passes');
          if (lane.score !== null) state.className = lane.score >= 0.5 ? 'right' : 'wrong';
        }
        const tokens = row.appendChild(document.createElement('div'));
        tokens.className = 'tokens';
        lane.tokens.forEach((text, i) => {
          const cell = tokens.appendChild(document.createElement('span'));
          const at = lane.unmaskedAt[i];
          const visible = at > 0 && at <= step;
          // Masked tokens keep their width, so that nothing moves.
          cell.textContent = text.replace(/^<(.*)>$/, '$1');
          cell.className = visible ? (at === step ? 'new' : '') + (/^<.*>$/.test(text) ? ' eos' : '') : 'mask';
          if (visible) {
            cell.style.background = `var(--s${(at - 1) % 8})`;
            cell.title = `pass ${at}`;
          }
        });
        return row;
      }),
    );
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = 'Play';
  };
  const open = () => {
    stop();
    slider.max = Math.max(...views[choice.value].lanes.map((lane) => lane.nfe));
    slider.value = Math.min(2, slider.max);
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
  if (views.length > 0) open();
})();
