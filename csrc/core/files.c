/* Of which file a chunk is the first: what a guess about neighbours goes by. */
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base.h"
#include "rafs.h"
#include "core.h"
#include "tree.h"

#define INDEX_SIZE 8u
#define NO_SUFFIX 1u
#define FIRST_KIND 2u

/* What is left to do, so that every tree ends: each entry takes 12 bytes of the bootstrap. */
struct walk {
	struct nf_tree tree;
	uint64_t *stack;
	size_t depth, room;
	uint64_t entries;
};

/* Library versions ("libz.so.1.2") are of one kind. */
uint16_t nf_kind_of(const uint8_t *name, uint32_t len)
{
	uint32_t from = len, hash = 2166136261u;

	for (uint32_t i = len; i-- > 1;) {
		if (name[i] != '.')
			continue;
		if (from == len)
			from = i + 1;
		if (len - i >= 3 && !memcmp(name + i + 1, "so", 2) &&
		    (len - i == 3 || name[i + 3] == '.')) {
			from = i + 1;
			len = i + 3;
			break;
		}
	}
	if (from == len)
		return NO_SUFFIX;
	for (; from < len; from++)
		hash = (hash ^ name[from]) * 16777619u;
	hash = (hash ^ hash >> 16) & 0xffff;
	return (uint16_t)(hash < FIRST_KIND ? hash + FIRST_KIND : hash);
}

static int push(struct walk *w, uint64_t nid)
{
	if (w->depth == w->room) {
		size_t room = w->room ? 2 * w->room : 64;
		uint64_t *stack = realloc(w->stack, room * sizeof(*stack));

		if (!stack)
			return -ENOMEM;
		w->stack = stack;
		w->room = room;
	}
	w->stack[w->depth++] = nid;
	return 0;
}

/* The first chunk of a file that is in this device; false: it has none there. */
static bool first_chunk(const struct nf_tree *t, uint64_t nid, uint32_t device, uint32_t *chunk)
{
	struct nf_node n;
	uint64_t at;

	if (!nf_tree_node(t, nid, &n) || !S_ISREG(n.mode) || !n.size)
		return false;
	at = (n.tail + INDEX_SIZE - 1) & ~(uint64_t)(INDEX_SIZE - 1);
	if (at > t->len || t->len - at < INDEX_SIZE)
		return false;
	*chunk = (uint32_t)(t->data[at] | t->data[at + 1] << 8 | (uint32_t)t->data[at + 3] << 16);
	return t->data[at + 2] == device + 1;
}

int nf_files_of(const uint8_t *image, size_t len, uint32_t device, uint32_t n,
		uint32_t *directories, uint16_t *kinds)
{
	struct walk w = { .entries = len / 12 };
	struct nf_node directory;
	int rc = nf_tree_open(&w.tree, image, len);

	if (!rc)
		rc = push(&w, w.tree.root);
	while (!rc && w.depth) {
		struct nf_entry e;
		uint64_t pos = 0, nid = w.stack[--w.depth];
		uint32_t chunk;

		if (!nf_tree_node(&w.tree, nid, &directory) || !S_ISDIR(directory.mode))
			continue;
		while (!rc && w.entries && nf_tree_entry(&w.tree, &directory, &pos, &e) == 1) {
			w.entries--;
			if (e.name[0] == '.' && (e.len == 1 || (e.len == 2 && e.name[1] == '.')))
				continue;
			if (e.type == DT_DIR)
				rc = push(&w, e.nid);
			else if (e.type == DT_REG && nid <= UINT32_MAX &&
				 first_chunk(&w.tree, e.nid, device, &chunk) && chunk < n &&
				 !kinds[chunk]) {
				directories[chunk] = (uint32_t)nid;
				kinds[chunk] = nf_kind_of(e.name, e.len);
			}
		}
	}
	free(w.stack);
	return rc;
}
