"use strict";
// Forms are sent to the API as JSON: data-api="METHOD /path", fields by their names, data-body for what is fixed.
// Afterwards data-then says where to go; without it, what is shown is fetched anew.
(() => {
  const message = document.getElementById("message");

  function say(text) {
    message.textContent = text;
    message.hidden = !text;
    if (text) message.scrollIntoView({ block: "nearest" });
  }

  function sentence(problem) {
    const expected = problem.expected ? `; expected ${problem.expected}` : "";
    const found = `${problem.where}: ${problem.found}${expected}`;
    return `${found}${/[.!?]$/.test(found) ? "" : "."} ${problem.mend || ""}`.trim();
  }

  async function ask(method, path, body) {
    const options = { method };
    if (body !== undefined) {
      options.headers = { "content-type": "application/json" };
      options.body = JSON.stringify(body);
    }
    let answer;
    try {
      answer = await fetch(path, options);
    } catch {
      throw new Error("The service does not answer. Is it running?");
    }
    if (answer.status === 401) {
      location.reload();
      throw new Error("The login has ended.");
    }
    const said = answer.status === 204 ? {} : await answer.json();
    if (!answer.ok) throw new Error(sentence(said));
    return said;
  }

  function fieldsOf(form, pressed) {
    const body = form.dataset.body ? JSON.parse(form.dataset.body) : {};
    if (pressed && pressed.name) body[pressed.name] = pressed.value;
    for (const field of form.elements) {
      if (!field.name || field.disabled || field.type === "submit") continue;
      if (field.type === "checkbox") body[field.name] = field.checked;
      else if (field.type === "number") body[field.name] = field.value === "" ? null : Number(field.value);
      else if (field.type !== "radio" || field.checked) body[field.name] = field.value;
    }
    return body;
  }

  async function send(form, pressed) {
    const [method, path] = form.dataset.api.split(" ");
    const buttons = form.querySelectorAll("button");
    buttons.forEach((button) => { button.disabled = true; });
    try {
      const said = await ask(method, path, fieldsOf(form, pressed));
      say("");
      form.dispatchEvent(new CustomEvent("taken"));
      if (form.dataset.then) location.assign(form.dataset.then.replace("{id}", said.id));
      else document.body.dispatchEvent(new CustomEvent("changed"));
    } catch (error) {
      say(error.message);
    } finally {
      buttons.forEach((button) => { button.disabled = false; });
    }
  }

  document.addEventListener("submit", (event) => {
    const form = event.target.closest("form[data-api]");
    if (!form) return;
    event.preventDefault();
    if (!form.dataset.sure || window.confirm(form.dataset.sure)) send(form, event.submitter);
  });

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
    const words = button.textContent;
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = words; }, 1500);
  });

  // "/" goes to the filter or the first field, as in many places.
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.target.closest("input, textarea, select")) return;
    const field = document.querySelector("[data-slash]");
    if (field) {
      event.preventDefault();
      field.focus();
    }
  });

  window.tunewright = { ask, say };
})();
