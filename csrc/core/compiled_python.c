/*
 * Names that a module of compiled Python imports: marshal, as CPython's Python/marshal.c reads it.
 *
 * The bytes are an image's, so they may be hostile: depths and counts are bounded, and whatever
 * does not fit names nothing.  Nothing is ever run or unmarshalled.
 */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "names.h"

static const struct word nothing;

#define MAGIC_3_8 3410u
#define MAGIC_3_11 3450u
#define MAGIC_3_13 3550u
#define MAGIC_END 4000u
#define DEPTH_MAX 24u
#define FLAG_REF 0x80u
#define ITEMS_MAX 4096u
#define OP_LOAD_CONST 100u	/* until 3.12 */
#define OP_IMPORT_NAME 108u
#define OP_EXTENDED_ARG 144u

struct marshal {
	const uint8_t *p;
	uint32_t len;
	uint32_t *refs;	/* where the objects are that can be referred to */
	uint32_t nrefs, refs_max;
	bool is_old;	/* before 3.11 */
	bool is_known;	/* its references were counted before */
};

struct items {
	uint32_t at[ITEMS_MAX];
	uint32_t n;
};

static uint32_t le32(const uint8_t *p)
{
	return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Positions are 0 for "nothing": no object begins with the header. */
static uint32_t past(const struct marshal *m, uint32_t at, uint64_t len)
{
	return at && len <= m->len - at ? at + (uint32_t)len : 0;
}

static uint32_t count_at(const struct marshal *m, uint32_t at, uint32_t *count)
{
	if (!past(m, at, 4))
		return 0;
	*count = le32(m->p + at);
	return at + 4;
}

static uint32_t skip(struct marshal *m, uint32_t at, uint32_t depth);

static uint32_t skip_all(struct marshal *m, uint32_t at, uint32_t count, uint32_t depth)
{
	while (at && count--)
		at = skip(m, at, depth);
	return at;
}

/* A code object behind its type, up to its bytecode. */
static uint32_t to_bytecode(const struct marshal *m, uint32_t at)
{
	return past(m, at, m->is_old ? 24 : 20);
}

static uint32_t skip_code(struct marshal *m, uint32_t at, uint32_t depth)
{
	at = skip_all(m, to_bytecode(m, at), 8, depth);
	return skip_all(m, past(m, at, 4), m->is_old ? 1 : 2, depth);
}

static void note_ref(struct marshal *m, uint32_t at)
{
	if (!m->is_known && m->nrefs < m->refs_max)
		m->refs[m->nrefs++] = at;
}

/* Behind the object at `at`; 0: there is none. */
static uint32_t skip(struct marshal *m, uint32_t at, uint32_t depth)
{
	uint32_t count = 0, next = past(m, at, 1);
	uint8_t type;

	if (!next || depth == DEPTH_MAX)
		return 0;
	type = m->p[at] & ~FLAG_REF & 0xff;
	if (m->p[at] & FLAG_REF)
		note_ref(m, at);
	switch (type) {
	case '0': case 'N': case 'F': case 'T': case 'S': case '.':
		return next;
	case 'i': case 'r':
		return past(m, next, 4);
	case 'I': case 'g':
		return past(m, next, 8);
	case 'y':
		return past(m, next, 16);
	case 'l':
		next = count_at(m, next, &count);
		return past(m, next, 2 * (uint64_t)(count >> 31 ? 0u - count : count));
	case 's': case 't': case 'u': case 'a': case 'A':
		next = count_at(m, next, &count);
		return past(m, next, count);
	case 'z': case 'Z':
		return past(m, next, 1) ? past(m, next + 1, m->p[next]) : 0;
	case ')':
		return past(m, next, 1) ? skip_all(m, next + 1, m->p[next], depth + 1) : 0;
	case '(': case '[': case '<': case '>':
		next = count_at(m, next, &count);
		return skip_all(m, next, count, depth + 1);
	case ':':
		return skip_all(m, next, 3, depth + 1);
	case 'c':
		return skip_code(m, next, depth + 1);
	default:	/* not found in modules */
		return 0;
	}
}

/* What a reference leads to. */
static uint32_t resolved(const struct marshal *m, uint32_t at)
{
	uint32_t number;

	if (!past(m, at, 1))
		return 0;
	if (m->p[at] != 'r')
		return at;
	if (!count_at(m, at + 1, &number) || number >= m->nrefs)
		return 0;
	return m->refs[number];
}

static struct word string_at(const struct marshal *m, uint32_t at)
{
	uint32_t count;

	at = resolved(m, at);
	if (!at)
		return nothing;
	switch (m->p[at] & ~FLAG_REF & 0xff) {
	case 'z': case 'Z':
		return past(m, at + 1, 1) && past(m, at + 2, m->p[at + 1]) ?
			(struct word){ m->p + at + 2, m->p[at + 1] } : nothing;
	case 's': case 't': case 'u': case 'a': case 'A':
		return count_at(m, at + 1, &count) && past(m, at + 5, count) ?
			(struct word){ m->p + at + 5, count } : nothing;
	default:
		return nothing;
	}
}

/* The items of a tuple, which is skipped; 0: it is none, or of too many. */
static uint32_t items_at(struct marshal *m, uint32_t at, struct items *items)
{
	uint32_t to = resolved(m, at), next, count = 0;
	bool was_known = m->is_known;

	items->n = 0;
	if (!to)
		return 0;
	if (to != at)
		m->is_known = true;
	else if (m->p[at] & FLAG_REF)
		note_ref(m, at);
	next = past(m, to, 1);
	switch (m->p[to] & ~FLAG_REF & 0xff) {
	case ')':
		count = past(m, next, 1) ? m->p[next] : 0;
		next = past(m, next, 1);
		break;
	case '(':
		next = count_at(m, next, &count);
		break;
	default:
		next = 0;
	}
	for (uint32_t i = 0; next && i < count; i++) {
		const uint32_t item = next;

		next = skip(m, item, 1);
		if (next && i < ITEMS_MAX)
			items->at[items->n++] = item;
	}
	m->is_known = was_known;
	return next && to != at ? past(m, at, 5) : next;
}

/* What is imported from a module: a tuple of names, or none. */
static void emit_from(struct marshal *m, uint32_t at, uint32_t level, struct word name,
		      struct names *out)
{
	struct word last;
	uint32_t count;

	at = resolved(m, at);
	if (!at || (m->p[at] & 0x7f) != ')' || !past(m, at + 1, 1))
		return;
	count = m->p[at + 1];
	for (at += 2; count-- && (last = string_at(m, at)).len;) {
		nf_name(out, level, name, last);
		at = skip(m, at, DEPTH_MAX - 1);
	}
}

/* `import`s of the module itself: those of its functions are needed when these run, if ever. */
static void emit_imports(struct marshal *m, struct word code, const struct items *consts,
			 const struct items *names, struct names *out)
{
	uint32_t arg = 0, level_at = 0, from_at = 0, imports = 0;

	for (uint32_t i = 0; i + 1 < code.len && imports < NAMES_MAX; i += 2) {
		const uint8_t op = code.p[i];
		uint32_t at;

		arg = arg << 8 | code.p[i + 1];
		if (op == OP_EXTENDED_ARG)
			continue;
		if (op == OP_LOAD_CONST) {
			level_at = from_at;
			from_at = arg < consts->n ? consts->at[arg] : 0;
		} else if (op == OP_IMPORT_NAME && arg < names->n) {
			const struct word name = string_at(m, names->at[arg]);
			uint32_t level = 0;

			at = resolved(m, level_at);
			if (at && (m->p[at] & 0x7f) == 'i')
				count_at(m, at + 1, &level);
			imports++;
			nf_name(out, level, name, nothing);
			emit_from(m, from_at, level, name, out);
		}
		arg = 0;
	}
}

/* Of versions whose bytecode is not known: all names, in the order in which they are used first. */
static void emit_all(struct marshal *m, const struct items *names, struct names *out)
{
	struct word before = nothing;

	for (uint32_t i = 0; i < names->n; i++) {
		const struct word name = string_at(m, names->at[i]);

		nf_name(out, 0, name, nothing);
		nf_name(out, 1, name, nothing);
		if (before.len)
			nf_name(out, 0, before, name);
		before = name;
	}
}

void nf_names_of_python(const uint8_t *data, size_t len, struct names *out)
{
	const uint32_t magic = data[0] | (uint32_t)data[1] << 8;
	struct marshal m = { .p = data, .len = (uint32_t)len, .refs_max = (uint32_t)len,
			     .is_old = magic < MAGIC_3_11 };
	struct items *items;
	uint32_t at = NF_PYTHON_HEADER, code_at;

	if (magic < MAGIC_3_8 || magic >= MAGIC_END || (data[at] & 0x7f) != 'c')
		return;
	m.refs = malloc(m.refs_max * sizeof(*m.refs));
	items = malloc(2 * sizeof(*items));
	if (m.refs && items) {
		if (data[at] & FLAG_REF)
			note_ref(&m, at);
		code_at = to_bytecode(&m, at + 1);
		at = skip(&m, code_at, 1);
		at = items_at(&m, at, &items[0]);
		if (at && items_at(&m, at, &items[1])) {
			m.is_known = true;
			if (magic < MAGIC_3_13)
				emit_imports(&m, string_at(&m, code_at), &items[0], &items[1], out);
			else
				emit_all(&m, &items[1], out);
		}
	}
	free(items);
	free(m.refs);
}
