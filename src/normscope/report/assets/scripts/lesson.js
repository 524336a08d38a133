// The lesson page: one example, shared by all its pictures.

function lessonPage(lesson) {
  if (!document.getElementById("play-figure")) return;
  const example = sharedExample(lesson);
  const board = bench(example);
  recallExample(example);
  guidedTour(example, lesson.stages.map((s) => s.name));
  recoveryCards(example);
  fearCases(example);
  composition(lesson.composition);
  stepLines(lesson);
  onLanguage(board.update);
  if (!location.hash.includes("mode=")) board.player.start();
}
