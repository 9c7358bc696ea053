"use strict";

/** Have a screen reader say it when it is free; of texts in quick succession, the last. */
const say = (() => {
  const status = document.getElementById("status");
  let timer = 0;
  return (text) => {
    clearTimeout(timer);
    timer = setTimeout(() => { status.textContent = text; }, 300);
  };
})();
