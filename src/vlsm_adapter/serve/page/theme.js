// Sets the colour scheme before the first paint: "light" or "dark" where the user chose one, else the system's.
(() => {
  try {
    const chosen = localStorage.getItem("vlsm-theme");
    if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  } catch {
    // Storage is refused (private window): the system's scheme holds.
  }
})();
