"use strict";
// A link from elsewhere comes without the cookie, since that is kept to this site: then one more look is enough.
const message = document.getElementById("message");

async function isKnown() {
  return (await fetch("/api/v1/status")).ok;
}

async function logIn(event) {
  event.preventDefault();
  const token = document.getElementById("token").value.trim();
  const answer = await fetch("/api/v1/session", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ token }),
  });
  if (answer.ok) {
    location.reload();
    return;
  }
  message.hidden = false;
  message.textContent = "This is not the token. Copy the whole line of the file.";
}

document.getElementById("login").addEventListener("submit", logIn);
isKnown().then((known) => { if (known) location.replace(location.href); });
