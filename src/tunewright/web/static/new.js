"use strict";
// One recipe in three forms. The keys are the truth; the service says what they mean, and whether they could run.
(() => {
  const { ask, say } = window.tunewright;
  const at = (id) => document.getElementById(id);
  const root = at("new");
  const presets = JSON.parse(root.dataset.presets);
  const fields = [...document.querySelectorAll("[data-key]")];
  const MILLISECONDS_OF_REST = 300;
  let keys = JSON.parse(root.dataset.keys);
  let timer = 0;
  let asked = 0;

  function valueOf(field) {
    const text = field.value.trim();
    if (text === "") return undefined;
    if (field.dataset.kind === "number") return Number.isNaN(Number(text)) ? text : Number(text);
    if (field.dataset.kind === "list") return text.split(/\s*,\s*/).filter(Boolean);
    return text;
  }

  function fillForm() {
    for (const field of fields) {
      const value = keys[field.dataset.key];
      field.value = value === undefined || value === null ? "" : Array.isArray(value) ? value.join(", ") : String(value);
      if (field.tagName === "SELECT" && field.selectedIndex < 0) field.value = "";
    }
  }

  function problem(text) {
    at("problem").textContent = text;
    at("problem").hidden = !text;
    at("start").disabled = at("ask-plan").disabled = Boolean(text);
  }

  async function understand(given, fill) {
    const mine = ++asked;
    try {
      const said = await ask("POST", "/api/v1/recipes", given);
      if (mine !== asked) return;
      problem("");
      keys = said.recipe;
      at("command").textContent = said.command;
      fill(said);
    } catch (error) {
      if (mine === asked) problem(error.message);
    }
  }

  function soon(action) {
    clearTimeout(timer);
    at("start").disabled = at("ask-plan").disabled = true;
    timer = setTimeout(action, MILLISECONDS_OF_REST);
  }

  function fromForm() {
    if (keys.data) understand({ recipe: keys }, (said) => { at("yaml").value = said.yaml; });
    else problem("Name the rows to train on.");
  }

  const fromYaml = () => understand({ yaml: at("yaml").value }, fillForm);

  function takeField(field) {
    const value = valueOf(field);
    if (value === undefined) delete keys[field.dataset.key];
    else keys[field.dataset.key] = value;
    soon(fromForm);
  }

  function takePreset(name) {
    for (const preset of Object.values(presets)) for (const key of Object.keys(preset)) delete keys[key];
    Object.assign(keys, presets[name]);
    fillForm();
    soon(fromForm);
  }

  async function plan() {
    try {
      const look = await ask("POST", "/api/v1/plans", { recipe: keys });
      say("");
      htmx.ajax("GET", `/parts/plan/${look.id}`, { target: "#plan", swap: "innerHTML" });
    } catch (error) {
      say(error.message);
    }
  }

  async function start() {
    at("start").disabled = true;
    try {
      const job = await ask("POST", "/api/v1/jobs", { recipe: keys });
      location.assign(`/runs/${encodeURIComponent(job.run_dir.split("/").pop())}`);
    } catch (error) {
      say(error.message);
      at("start").disabled = false;
    }
  }

  fields.forEach((field) => field.addEventListener("input", () => takeField(field)));
  at("yaml").addEventListener("input", () => soon(fromYaml));
  at("form").addEventListener("submit", (event) => event.preventDefault());
  document.querySelectorAll("[name=preset]").forEach((one) => {
    one.addEventListener("change", () => takePreset(one.value));
  });
  at("ask-plan").addEventListener("click", plan);
  at("start").addEventListener("click", start);
  fillForm();
  fromForm();
})();
