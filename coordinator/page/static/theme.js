// Light or dark: as the system has it, or as the switch says.

const NEXT = { auto: "light", light: "dark", dark: "auto" };
const SAYS = { auto: "as the system", light: "light", dark: "dark" };

export function offerThemes(button) {
  const show = (theme) => {
    document.documentElement.dataset.theme = theme;
    button.textContent = `Colours: ${SAYS[theme]}`;
  };
  show(remembered());
  button.addEventListener("click", () => {
    const theme = NEXT[document.documentElement.dataset.theme];
    show(theme);
    try {
      localStorage.setItem("theme", theme);
    } catch {
      // a browser that keeps nothing shows the page all the same
    }
  });
}

function remembered() {
  try {
    const theme = localStorage.getItem("theme");
    return theme in NEXT ? theme : "auto";
  } catch {
    return "auto";
  }
}
