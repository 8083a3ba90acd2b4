"use strict";
// A file goes to the service as it is, with its progress; then it is looked at.
(() => {
  const { ask, say } = window.tunewright;
  const at = (id) => document.getElementById(id);
  let chosen = null;

  function choose(file) {
    chosen = file || null;
    at("zone").classList.toggle("chosen", Boolean(chosen));
    at("zone").querySelector("strong").textContent = chosen ? chosen.name : "Drop a file here, or choose one";
    if (chosen) at("path").value = "";
  }

  // fetch does not tell how far an upload is.
  function upload(file) {
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open("PUT", `/api/v1/files?name=${encodeURIComponent(file.name.slice(-200))}`);
      request.setRequestHeader("content-type", "application/octet-stream");
      request.upload.onprogress = (event) => {
        at("sent").textContent = `${Math.floor((100 * event.loaded) / event.total)} % sent`;
      };
      request.onload = () => {
        const said = JSON.parse(request.responseText || "{}");
        if (request.status === 201) resolve(said);
        else reject(new Error(`${said.found}. ${said.mend}`));
      };
      request.onerror = () => reject(new Error("The file did not arrive. Is the service running?"));
      request.send(file);
    });
  }

  async function check(event) {
    event.preventDefault();
    const path = at("path").value.trim();
    if (!chosen && !path) {
      say("Choose a file, or name a path on the service's machine.");
      return;
    }
    const button = at("drop").querySelector("button");
    button.disabled = true;
    try {
      const data = chosen ? (await upload(chosen)).path : path;
      const recipe = { data };
      if (chosen) recipe.name = chosen.name.split(".")[0].replace(/[^\w-]+/g, "_") || "rows";
      if (at("model").value.trim()) recipe.model = at("model").value.trim();
      const look = await ask("POST", "/api/v1/checks", { recipe, title: chosen ? chosen.name.slice(-200) : "" });
      location.assign(`/data/${look.id}`);
    } catch (error) {
      say(error.message);
      at("sent").textContent = "";
      button.disabled = false;
    }
  }

  at("file").addEventListener("change", () => choose(at("file").files[0]));
  at("path").addEventListener("input", () => { if (at("path").value) choose(null); });
  for (const name of ["dragover", "dragleave", "drop"]) {
    at("zone").addEventListener(name, (event) => {
      event.preventDefault();
      at("zone").classList.toggle("over", name === "dragover");
      if (name === "drop") choose(event.dataTransfer.files[0]);
    });
  }
  at("drop").addEventListener("submit", check);
})();
