for (const button of document.querySelectorAll('button[data-copy]')) {
  button.hidden = false;
  button.onclick = async () => {
    await navigator.clipboard?.writeText(button.previousElementSibling.textContent);
    button.textContent = 'Copied';
    setTimeout(() => { button.textContent = 'Copy'; }, 1500);
  };
}
const find = document.getElementById('find');
if (find) {
  find.hidden = false;
  find.oninput = () => {
    const text = find.value.toLowerCase();
    for (const failure of document.querySelectorAll('details.failure')) {
      failure.hidden = !failure.firstElementChild.textContent.toLowerCase().includes(text);
    }
  };
}
