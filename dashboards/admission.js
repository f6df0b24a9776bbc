// Keeps the access word in this browser, for this origin alone (a cookie would go to every port of the host), and shows it to the
// server. It comes once, in the address that pgwarden printed, and does not stay there.

const NAME = "pgwarden.access";

export default function (component) {
  const { data, setStateValue } = component;
  const here = new URL(window.location.href);
  const given = here.searchParams.get("access");
  if (given !== null) {
    if (given) localStorage.setItem(NAME, given);
    here.searchParams.delete("access");
    window.history.replaceState(window.history.state, "", here);
  }
  if (data.typed) localStorage.setItem(NAME, data.typed);
  const kept = localStorage.getItem(NAME) || "";
  if (kept !== data.shown) setStateValue("word", kept);
}
