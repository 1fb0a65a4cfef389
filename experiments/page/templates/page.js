(() => {
  // Everything works without this. With it: another model is a choice without a button, an image that is dropped or pasted is taken,
  // an answer to it comes without leaving the page (the chosen file stays chosen), and a page that waits looks again by itself.
  document.documentElement.classList.add("scripted");
  const results = () => document.querySelector("#results");
  const say = (text) => {
    const line = document.createElement("p");
    line.className = "message";
    line.setAttribute("role", "alert");
    line.textContent = text;
    results().replaceChildren(line);
  };

  // A word's map over the image: that of the chosen word, or of one that is pointed at.
  const show = (choice) => {
    const heat = document.querySelector(".heat");
    heat.hidden = !choice.dataset.heat;
    if (choice.dataset.heat) heat.src = choice.dataset.heat; else heat.removeAttribute("src");
    document.querySelector(".told").textContent = choice.dataset.told ?? "";
  };
  const chosen = () => document.querySelector(".chooser :checked");
  document.addEventListener("change", (event) => {
    if (event.target.matches("select[data-go]")) event.target.form.requestSubmit();
    if (event.target.matches(".chooser input")) show(event.target);
  });
  for (const name of ["mouseover", "mouseout"]) {
    document.addEventListener(name, (event) => {
      const label = event.target.closest?.(".chooser label");
      if (label) show(name === "mouseover" ? label.querySelector("input") : chosen());
    });
  }
  document.addEventListener("click", (event) => {
    const panel = event.target.closest?.(".panels li"), choice = panel && document.querySelector(`.chooser [value="${panel.dataset.word}"]`);
    if (!choice) return;
    choice.checked = true;
    show(choice);
    document.querySelector(".stage").scrollIntoView({ block: "nearest" });
  });

  const form = document.querySelector("form.drop");
  if (form) {
    const file = form.querySelector("input[type=file]"), button = form.querySelector("button");
    const send = async () => {
      if (!file.files.length) return;
      if (file.files[0].size > Number(form.dataset.most)) {
        say(`${file.files[0].name} is larger than ${Number(form.dataset.most) >> 20} MB; send a smaller one.`);
        return;
      }
      button.setAttribute("aria-busy", "true");
      button.textContent = "Looking …";
      try {
        const answer = await fetch(form.action, { method: "POST", body: new FormData(form) });
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        results().replaceWith(document.importNode(page.querySelector("#results"), true));
        prepare();
        (results().querySelector("h2[tabindex]") ?? results()).focus({ preventScroll: false });
      } catch {
        say("The page does not answer: is `crosslight page` still running?");
      }
      button.removeAttribute("aria-busy");
      button.textContent = "Look";
    };
    const take = (files) => {
      const image = [...files].find((each) => each.type.startsWith("image/"));
      if (!image) {
        if (files.length) say(`${files[0].name} is not an image.`);
        return;
      }
      const given = new DataTransfer();
      given.items.add(image);
      file.files = given.files;
      send();
    };
    form.addEventListener("submit", (event) => { event.preventDefault(); send(); });
    file.addEventListener("change", send);
    for (const name of ["dragover", "dragleave", "drop"]) {
      document.addEventListener(name, (event) => {
        event.preventDefault();
        form.classList.toggle("over", name === "dragover");
        if (name === "drop") take(event.dataTransfer.files);
      });
    }
    document.addEventListener("paste", (event) => { if (event.clipboardData.files.length) take(event.clipboardData.files); });
  }

  const prepare = () => {
    if (chosen()) show(chosen());
    const waiting = document.querySelector("[data-progress]");
    if (waiting) {
      const look = async () => {
        const { state, done, total } = await (await fetch(waiting.dataset.progress)).json();
        if (state === "ready" || state === "failed") { location.reload(); return; }
        const bar = waiting.querySelector("progress");
        if (total) {
          bar.max = total;
          bar.value = done;
          waiting.querySelector("h2").textContent = "Images are being encoded";
          waiting.querySelector("p span").textContent = `${done.toLocaleString("en")} of ${total.toLocaleString("en")} images.`;
        }
        setTimeout(look, 700);
      };
      setTimeout(look, 500);
    }
  };
  prepare();
})();
