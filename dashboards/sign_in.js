// Keeps, in this tab and for this origin alone, which page was wanted before somebody went to their provider to sign in, and goes
// there when they are back: the provider leads to the front page.

const WANTED = "pgwarden.wanted";

export default function (component) {
  const here = window.location;
  if (!component.data.signed_in) {
    sessionStorage.setItem(WANTED, here.pathname + here.search);
    return;
  }
  const wanted = sessionStorage.getItem(WANTED);
  sessionStorage.removeItem(WANTED);
  if (!wanted || wanted === here.pathname + here.search) return;
  const target = new URL(wanted, here.origin);
  if (target.origin === here.origin) here.replace(target); // `//elsewhere.example/` is a path too
}
