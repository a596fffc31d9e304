// Shows the values nearest to the pointer beneath a plot. Everything else works without it.
"use strict";
for (const data of document.querySelectorAll('script[type="application/json"]')) {
  const reading = data.previousElementSibling;
  const plot = reading.previousElementSibling;
  const cursor = plot.querySelector(".cursor");
  const { x, text } = JSON.parse(data.textContent);
  const width = plot.viewBox.baseVal.width;
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * width;
    let nearest = 0;
    for (let n = 1; n < x.length; n++) {
      if (Math.abs(x[n] - at) < Math.abs(x[nearest] - at)) nearest = n;
    }
    cursor.setAttribute("transform", `translate(${x[nearest]} 0)`);
    cursor.setAttribute("visibility", "visible");
    reading.textContent = text[nearest];
  });
  plot.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    reading.textContent = "\u00a0";
  });
}
