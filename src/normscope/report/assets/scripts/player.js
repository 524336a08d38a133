// A button that lets something run from 0 to 1; with reduced motion it is at its end at once.

function playing(button, show, { milliseconds = 2500, ended = () => {} } = {}) {
  let running = null;
  const press = (on) => button.setAttribute("aria-pressed", String(on));
  function stop() {
    cancelAnimationFrame(running);
    running = null;
    press(false);
  }
  function start() {
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
      show(1);
      return ended();
    }
    press(true);
    const began = performance.now();
    const frame = (now) => {
      const share = Math.min(1, Math.max(0, (now - began) / milliseconds));
      show(share);
      if (share < 1) running = requestAnimationFrame(frame);
      else {
        stop();
        ended();
      }
    };
    running = requestAnimationFrame(frame);
  }
  button.addEventListener("click", () => (running === null ? start() : stop()));
  return { start, stop };
}
