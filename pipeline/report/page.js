"use strict";
(() => {
  const REST = 1; // seconds between two runs of the films
  const root = document.documentElement;
  root.classList.add("js");

  // The browser may keep no storage for a page that is opened as a file.
  const store = {
    get: () => { try { return localStorage.getItem("dynarep-theme"); } catch { return null; } },
    set: (value) => { try { localStorage.setItem("dynarep-theme", value); } catch { /* the choice lasts for this visit */ } },
  };
  const setTheme = (theme) => {
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
    else delete root.dataset.theme;
  };
  setTheme(store.get());

  function themes() {
    const chosen = root.dataset.theme ?? "system";
    for (const input of document.querySelectorAll(".theme input")) {
      input.checked = input.value === chosen;
      input.addEventListener("change", () => { setTheme(input.value); store.set(input.value); });
    }
  }

  function stepper(box) {
    const items = [...box.querySelectorAll(".item")];
    const slider = box.querySelector("input");
    const output = box.querySelector("output");
    const show = () => {
      items.forEach((item, i) => { item.hidden = i !== slider.value - 1; });
      output.value = items[slider.value - 1].dataset.label;
      slider.setAttribute("aria-valuetext", output.value);
    };
    slider.addEventListener("input", show);
    show();
  }

  function films(box) {
    const seconds = Number(box.dataset.seconds);
    const slider = box.querySelector("input");
    const output = box.querySelector("output");
    const button = box.querySelector("button");
    const screens = [...box.querySelectorAll(".film")].map((film) => {
      film.querySelector(".screen").removeAttribute("tabindex"); // there is nothing to scroll any more
      return { image: film.querySelector("img"), frames: Number(film.dataset.frames) };
    });
    const last = Number(slider.max);
    let began = null;
    const show = (frame) => {
      for (const { image, frames } of screens) {
        image.style.transform = `translateY(${(-100 * Math.min(frame, frames - 1)) / frames}%)`;
      }
      slider.value = frame;
      output.value = `${(frame * seconds).toFixed(2)} s`;
      slider.setAttribute("aria-valuetext", output.value);
    };
    let loops = false;
    const stop = () => { began = null; loops = false; button.textContent = "Play"; };
    const tick = (now) => {
      if (began === null) return;
      const frame = Math.floor((now - began) / 1000 / seconds);
      if (Number(slider.value) !== Math.min(frame, last)) show(Math.min(frame, last));
      if (frame < last + (loops ? REST / seconds : 0)) requestAnimationFrame(tick);
      else if (loops) { began = now; requestAnimationFrame(tick); }
      else stop();
    };
    const play = () => {
      const from = Number(slider.value) < last ? Number(slider.value) : 0;
      began = performance.now() - from * seconds * 1000;
      button.textContent = "Pause";
      requestAnimationFrame(tick);
    };
    button.addEventListener("click", () => (began === null ? play() : stop()));
    slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
    show(0);
    // They run from the start, over and over, so that they move already when a reader comes to them.
    if (last > 0 && !matchMedia("(prefers-reduced-motion: reduce)").matches) { loops = true; play(); }
  }

  function tables() {
    for (const box of document.querySelectorAll(".scroll")) {
      const mark = () => {
        const rest = box.scrollWidth - box.clientWidth;
        box.classList.toggle("wide", rest > 4);
        box.classList.toggle("end", rest > 4 && box.scrollLeft > rest - 4);
      };
      new ResizeObserver(mark).observe(box);
      box.addEventListener("scroll", mark, { passive: true });
    }
  }

  addEventListener("DOMContentLoaded", () => {
    themes();
    tables();
    document.querySelectorAll(".stepper").forEach(stepper);
    document.querySelectorAll(".films").forEach(films);
  });
})();
