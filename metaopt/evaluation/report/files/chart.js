
/** The crosshair reads a step; the legend's buttons show and hide methods. */
{
  const find = (id) => document.getElementById(id);
  const data = JSON.parse(find("chart-data").textContent);
  const [plot, at, crosshair, reading] = ["plot", "at", "crosshair", "reading"].map(find);
  const last = data.steps.length - 1;
  const end = data.steps[last] || 1;
  const curves = plot.querySelectorAll(".curve");
  const methods = [...document.querySelectorAll(".legend li")].map((item, i) => ({
    ...data.methods[i],
    item,
    curve: curves[i],
    dot: curves[i].querySelector(".dot"),
    button: item.querySelector("button"),
    text: item.querySelector(".value"),
  }));
  const seen = (method) => method.button.getAttribute("aria-pressed") === "true";

  const read = (index) => {
    const x = `${100 * data.steps[index] / end}%`;
    at.value = index;
    at.setAttribute("aria-valuetext", `step ${data.steps[index]}`);
    reading.textContent = `Loss at step ${data.steps[index]}`;
    crosshair.firstElementChild.setAttribute("x1", x);
    crosshair.firstElementChild.setAttribute("x2", x);
    for (const { values, text, dot } of methods) {
      const y = (data.top - Math.log10(Number(values[index]))) / (data.top - data.bottom);
      text.textContent = values[index];
      if (isFinite(y)) {
        dot.setAttribute("cx", x);
        dot.setAttribute("cy", `${100 * y}%`);
      } else {
        dot.removeAttribute("cx");
      }
    }
  };

  const tell = () => {
    const index = Number(at.value);
    const values = methods.filter(seen).map(({ name, values }) => `${name} ${values[index]}`);
    say(`Step ${data.steps[index]}: ${values.join(", ") || "no method is shown"}.`);
  };

  const show = (method, shown) => {
    method.button.setAttribute("aria-pressed", shown);
    method.curve.classList.toggle("off", !shown);
  };

  const emphasise = (method, on) => {
    plot.classList.toggle("focused", on && seen(method));
    method.curve.classList.toggle("on-top", on);
  };

  const point = (event) => {
    const box = plot.getBoundingClientRect();
    const step = end * (event.clientX - box.left) / box.width;
    const distances = data.steps.map((shown) => Math.abs(shown - step));
    read(distances.indexOf(Math.min(...distances)));
  };

  for (const method of methods) {
    method.button.disabled = false;
    show(method, true);
    method.button.addEventListener("click", () => {
      show(method, !seen(method));
      emphasise(method, true);
    });
    for (const [event, on] of [["pointerenter", true], ["pointerleave", false]]) {
      method.item.addEventListener(event, () => emphasise(method, on));
    }
    for (const [event, on] of [["focus", true], ["blur", false]]) {
      method.button.addEventListener(event, () => emphasise(method, on));
    }
  }
  find("show-all").addEventListener("click", () => methods.forEach((m) => show(m, true)));
  find("hide-all").addEventListener("click", () => methods.forEach((m) => show(m, false)));
  plot.addEventListener("pointermove", point);
  plot.addEventListener("pointerdown", point);
  at.addEventListener("input", () => { read(Number(at.value)); tell(); });
  for (const id of ["scrub", "scrub-hint", "reading", "all"]) {
    find(id).hidden = false;
  }
  crosshair.classList.add("seen");
  read(last);
}
