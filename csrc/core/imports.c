/*
 * Names that a module says it imports: compiled Python (compiled_python.c), and lines of text that
 * begin with a word as `import`, `require` or `use`.
 *
 * The bytes are an image's, so they may be hostile: one pass over them, counts are bounded, and
 * whatever does not fit names nothing.
 */
#include <ctype.h>
#include <stdbool.h>
#include <string.h>

#include "base.h"
#include "rafs.h"
#include "core.h"
#include "names.h"

static const struct word nothing;

#define LINE_MAX 512u
#define INDENT_MAX 4u	/* columns: what stands further in is of a function, and needed when that runs */

static bool in_name(uint8_t c)
{
	return isalnum(c) || c == '_' || c == '-' || c == '.' || c == ':' || c == '/' || c == '@';
}

static bool is_word(struct word w, const char *text)
{
	return w.len == strlen(text) && !memcmp(w.p, text, w.len);
}

/* The next name of a line; of length 0: there is none.  `quoted`: it stands in quotes. */
static struct word next_name(struct word *line, bool *quoted)
{
	struct word found = nothing;

	*quoted = false;
	while (line->len && !in_name(*line->p)) {
		if (*line->p == '#' || *line->p == ';')
			return nothing;
		*quoted = *line->p == '\'' || *line->p == '"';
		line->p++;
		line->len--;
	}
	found.p = line->p;
	while (line->len && in_name(*line->p)) {
		line->p++;
		line->len--;
	}
	found.len = (uint32_t)(line->p - found.p);
	while (found.len && found.p[found.len - 1] == ':')
		found.len--;
	return found;
}

/* "./x", "../x", ".x" and "..x": how far up, and the rest. */
static void emit_written(struct names *out, struct word name, struct word last, bool beside)
{
	uint32_t up = beside ? 1 : 0;

	if (name.len && name.p[0] == '.') {
		for (up = 0; name.len && name.p[0] == '.'; name.p++, name.len--)
			up++;
		if (name.len && name.p[0] == '/') {
			name.p++;
			name.len--;
		}
		for (; name.len > 2 && !memcmp(name.p, "../", 3); up++) {
			name.p += 3;
			name.len -= 3;
		}
	}
	nf_name(out, up, name, last);
}

/* A path keeps its dots: "a/b.js", "/etc/x.conf". */
static void emit_path(struct names *out, struct word name)
{
	uint8_t *to = out->out + out->used;

	if (!memchr(name.p, '/', name.len) || name.len > NAME_MAX_LEN || out->count == NAMES_MAX ||
	    name.len + 1 > out->room - out->used)
		return;
	memcpy(to, name.p, name.len);
	to[name.len] = 0;
	out->used += name.len + 1;
	out->count++;
}

static void emit_quoted(struct names *out, struct word line, bool beside)
{
	struct word name;
	bool quoted;

	while ((name = next_name(&line, &quoted)).len)
		if (quoted) {
			emit_written(out, name, nothing, beside);
			emit_path(out, name);
		}
}

static void of_line(struct names *out, struct word line)
{
	struct word whole = line, word, first = nothing, name;
	uint32_t indent = 0;
	bool quoted, is_from;

	while (indent < line.len && line.p[indent] == ' ')
		indent++;
	word = next_name(&line, &quoted);
	is_from = is_word(word, "from");
	if (quoted && is_word(word, "main"))	/* package.json */
		emit_quoted(out, line, true);
	if (quoted || !word.len || indent > INDENT_MAX || *whole.p == '\t')
		return;
	if (is_from || is_word(word, "import") || is_word(word, "use")) {
		emit_quoted(out, line, false);
		while ((name = next_name(&line, &quoted)).len && !quoted) {
			if (is_word(name, "as")) {
				next_name(&line, &quoted);
			} else if (is_word(name, "qw")) {
				break;
			} else if (is_word(name, "import")) {
				is_from = is_from && first.len;
			} else if (is_from && first.len) {
				emit_written(out, first, name, false);
			} else {
				first = name;
				emit_written(out, name, nothing, false);
			}
		}
	} else if (indent == INDENT_MAX) {	/* of a method; Python indents its `try` so far */
		return;
	} else if (is_word(word, "require_relative")) {
		emit_quoted(out, line, true);
	} else if (is_word(word, "require") || is_word(word, "load") || is_word(word, "source") ||
		   is_word(word, ".") || is_word(word, "include")) {
		emit_quoted(out, line, false);
		name = next_name(&line, &quoted);
		if (name.len && !quoted) {
			emit_written(out, name, nothing, false);
			emit_path(out, name);
		}
	} else {
		const uint8_t *call = memmem(whole.p, whole.len, "require(", 8);

		if (!call)
			call = memmem(whole.p, whole.len, " from ", 6);
		if (call)
			emit_quoted(out, (struct word){ call, (uint32_t)(whole.p + whole.len - call) },
				    false);
	}
}

static void of_text(const uint8_t *data, size_t len, struct names *out)
{
	const uint8_t *end = data + len;

	while (data < end && out->count < NAMES_MAX) {
		const uint8_t *stop = memchr(data, '\n', (size_t)(end - data));
		size_t length = (size_t)((stop ? stop : end) - data);

		of_line(out, (struct word){ data, (uint32_t)(length < LINE_MAX ? length : LINE_MAX) });
		data += length + 1;
	}
}

size_t nf_imports(const uint8_t *data, size_t len, uint8_t *out, size_t room)
{
	struct names names = { .out = out, .room = room };

	if (len > NF_PYTHON_HEADER && len <= UINT32_MAX / 8 && !memcmp(data + 2, "\r\n", 2))
		nf_names_of_python(data, len, &names);
	else if (len && !memchr(data, 0, len < LINE_MAX ? len : LINE_MAX))
		of_text(data, len, &names);
	return names.used;
}
