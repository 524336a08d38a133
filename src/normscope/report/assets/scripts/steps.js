// The number line of every step, as it was recorded.

function stepLines(lesson) {
  const rows = [...document.querySelectorAll("[data-line]")].map((host) => {
    const { classes, thresholds, threshold_accuracy: accuracy } = lesson.stages.find((s) => s.name === host.dataset.line);
    const values = classes.map((c) => c.values);
    const of = values.flat().length;
    const draw = () => {
      const name = say("live.count", { right: Math.round(accuracy * of), of });
      const all = values.flat();
      const row = { key: host.dataset.line, classes: values, axis: inputAxis(all), name: "", cuts: thresholds, bells: false };
      canvas(host, tracksHeight([row]), say("live.line"), name, (picture, width) => paintTracks(picture, width, [row]));
    };
    redrawOnResize(host, draw);
    return draw;
  });
  onLanguage(() => rows.forEach((draw) => draw()));
}
