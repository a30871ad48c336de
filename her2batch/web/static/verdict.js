// The form for a verdict. Nothing is preset. Keys: 0, 1, 2, 3 choose a class, or type a number, I "needs ISH", Enter saves,
// N and P open the next and the previous slide.

import { classChip, cohort, element, fetchApi, VERDICT_WORDS } from "./common.js";

const byId = (id) => document.getElementById(id);

// Sets up the form. onSaved: called after a verdict was saved. Returns what removes its keys.
export function setUpVerdict(slide, openNeighbour, onSaved) {
  const { main, choices, task, is_number: isNumber } = slide.assessment;
  const form = byId("verdict");
  let superseded = null; // number of the entry that the next one replaces
  showReviews(slide.reviews);
  if (!cohort.may_review) {
    form.replaceChildren(element("p", {}, "You may read. A reviewer enters verdicts."));
  } else if (main && isNumber) {
    byId("choices").append(element("label", {}, "Number, as in the result ",
      element("input", { name: "choice", required: "", inputmode: "decimal", pattern: "\\d+([.,]\\d+)?", autocomplete: "off", size: "7" })));
  } else if (main) {
    const offered = task === "her2-4way" ? [...choices.map((name, k) => [name, name, String(k)]), ["needs-ish", "Needs ISH", "I"]]
      : choices.map((name, k) => [name, name, String(k)]);
    byId("choices").append(...offered.map(([value, label, key]) => element("label", { "data-key": key.toLowerCase() },
      element("input", { type: "radio", name: "choice", value, required: "" }), value === label ? classChip(label) : label, element("kbd", {}, key))));
  } else {
    form.replaceChildren(element("p", {}, "No method scores this slide: there is nothing to decide."));
  }
  if (main && cohort.may_review && slide.row.status === "failed") {
    form.prepend(element("p", { class: "soft" }, "The file could not be read. Scan the slide again, or score its glass under the microscope."));
  }
  const fields = form.elements;
  if (fields.reviewer) {
    fields.reviewer.value = cohort.user ?? sessionStorage.getItem("reviewer") ?? "";
    fields.reviewer.readOnly = cohort.user !== null; // signed in at the proxy
  }
  form.addEventListener("submit", save);
  addEventListener("keydown", onKey);
  return () => removeEventListener("keydown", onKey);

  function onKey(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target.closest?.("textarea, select, input:not([type=radio])")) return;
    const key = event.key.toLowerCase();
    if (key === "n" || key === "p") return openNeighbour(key === "n" ? 1 : -1);
    const choice = form.querySelector(`[data-key="${CSS.escape(key)}"] input`);
    if (main && isNumber && /^\d$/.test(key)) {
      fields.choice?.focus(); // which takes the digit
    } else if (choice) {
      event.preventDefault();
      choice.checked = true;
      choice.focus();
      byId("saved").textContent = `${choice.value === "needs-ish" ? "Needs ISH" : choice.value} is chosen. Enter saves it.`;
    } else if (key === "enter" && main && cohort.may_review && event.target === document.getElementById("main")) {
      form.requestSubmit();
    }
  }

  async function save(event) {
    event.preventDefault();
    const choice = isNumber ? fields.choice.value.replace(",", ".") : fields.choice.value;
    const same = choice === main.predicted || (isNumber && Number(choice) === Number(main.predicted));
    const verdict = choice === "needs-ish" ? "needs-ish" : same ? "agree" : "change";
    byId("saved").textContent = "Saving …";
    try {
      const entry = await fetchApi("reviews", {
        slide_id: slide.row.slide_id, ...main, verdict, label: verdict === "change" ? choice : null, comment: fields.comment.value,
        reviewer: fields.reviewer.value, supersedes: superseded,
      });
      sessionStorage.setItem("reviewer", fields.reviewer.value);
      byId("saved").textContent = `Saved as review ${entry.number}. N opens the next slide.`;
      form.reset();
      fields.reviewer.value = entry.reviewer;
      supersede(null);
      document.getElementById("main").focus({ preventScroll: true });
      const { reviews } = await fetchApi(`slides/${encodeURIComponent(slide.row.slide_id)}`);
      if (!form.isConnected) return;
      showReviews(reviews);
      await onSaved();
    } catch (error) {
      if (form.isConnected) byId("saved").textContent = `Not saved: ${error.message}`;
    }
  }

  // Makes the next entry replace an own one; null: a new entry.
  function supersede(entry) {
    superseded = entry?.number ?? null;
    fields.comment.required = entry !== null;
    byId("superseding").hidden = entry === null;
    byId("superseding").textContent = entry ? `Replaces review ${entry.number}. State the reason as a comment.` : "";
    if (entry) {
      fields.reviewer.value = entry.reviewer;
      fields.comment.focus();
    }
  }

  // Where the proxy knows the user, only an own review can be replaced.
  function isOwn(entry) {
    return main && cohort.may_review && (cohort.user === null || cohort.user === entry.reviewer);
  }

  function showReviews(entries) {
    const replaced = new Map(entries.filter((entry) => entry.supersedes).map((entry) => [entry.supersedes, entry.number]));
    byId("reviews").replaceChildren(...[...entries].reverse().map((entry) => {
      const by = replaced.get(entry.number);
      const words = entry.verdict === "change" ? `${entry.predicted ?? "no result"} → ${entry.label}` : VERDICT_WORDS[entry.verdict](entry);
      const button = element("button", { type: "button" }, "Replace");
      button.setAttribute("aria-label", `Replace review ${entry.number}`);
      button.addEventListener("click", () => supersede(entry));
      return element("li", { value: entry.number, class: by ? "superseded" : "" }, element("b", {}, words), ` (${entry.task}) `,
        element("span", { class: "who" }, `${entry.reviewer}, ${new Date(entry.time).toLocaleString()}`),
        by ? ` · replaced by review ${by}` : isOwn(entry) ? button : null, entry.comment ? element("q", {}, entry.comment) : null);
    }));
    if (!entries.length) byId("reviews").replaceChildren(element("li", { class: "none" }, "None."));
  }
}
