/* Any bootstrap, whatever was not validated in it, shown as a tree and asked anything. */
#include <linux/fuse.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fuse.h"
#include "fuzz_core.h"

#define SLOTS 8u
#define STEPS 48u
#define OBJECT_SIZE 20000u
#define IMAGE_MAX 8192u
#define SUPER 1024u

/* Of the input, but with a superblock and a root directory, so that it is looked into. */
static uint8_t *make_image(struct input *in, size_t *len)
{
	size_t got, n;
	uint8_t *noise = take_copy(in, IMAGE_MAX - SUPER - 128, &got), *image;

	n = SUPER + 128 + got;
	image = calloc(1, n);
	MUST(image);
	if (got)
		memcpy(image + SUPER + 128, noise, got);
	free(noise);
	memcpy(image + SUPER, "\xe2\xe1\xf5\xe0", 4);
	image[SUPER + 12] = 9;	/* blocks of 512 bytes; metadata from block 2 on */
	image[SUPER + 14] = 8;	/* the root is nid 8, behind the superblock's 256 bytes */
	image[SUPER + 40] = 2;
	image[SUPER + 86] = (uint8_t)take(in, 1);
	image[SUPER + 88] = 11;
	if (n > SUPER + 256 + 32)
		image[SUPER + 256 + 5] = (uint8_t)((image[SUPER + 256 + 5] & 0x0f) | (S_IFDIR >> 8));
	*len = n;
	return image;
}

static void send_message(struct input *in, int kernel)
{
	static const uint32_t opcodes[] = {
		FUSE_LOOKUP, FUSE_GETATTR, FUSE_READDIR, FUSE_READDIRPLUS, FUSE_READLINK,
		FUSE_GETXATTR, FUSE_LISTXATTR, FUSE_READ, FUSE_READ, FUSE_STATFS, FUSE_INIT,
	};
	uint8_t message[512] = { 0 };
	struct fuse_in_header h = {
		.opcode = opcodes[take(in, 1) % (sizeof(opcodes) / sizeof(*opcodes))],
		.unique = take(in, 1),
		.nodeid = take(in, 1) % 4 ? 1 + take(in, 1) : take(in, 8),
		.uid = (uint32_t)take(in, 1) % 2,
	};
	struct fuse_read_in body = { .offset = take(in, 1) % 4 ? take(in, 2) : take(in, 8),
				     .size = (uint32_t)take(in, 1) % 4 ? (uint32_t)take(in, 2) :
									 (uint32_t)take(in, 4) };
	size_t n = sizeof(h) + take(in, 1) % 400;

	if (h.opcode == FUSE_LOOKUP) {
		memset(message + sizeof(h), (int)take(in, 1), 300);
	} else if (h.opcode == FUSE_GETXATTR || h.opcode == FUSE_LISTXATTR) {
		struct fuse_getxattr_in x = { .size = (uint32_t)take(in, 2) };

		memcpy(message + sizeof(h), &x, sizeof(x));
		memcpy(message + sizeof(h) + sizeof(x), "user.a", 7);
	} else {
		memcpy(message + sizeof(h), &body, sizeof(body));
		n = sizeof(h) + sizeof(body);
	}
	h.len = (uint32_t)n;
	memcpy(message, &h, sizeof(h));
	send(kernel, message, n, MSG_DONTWAIT);
}

static void take_events(struct nf_core *c)
{
	static struct nf_event ev;

	while (nf_core_next(c, &ev, 1, 0))
		if (ev.type == NF_EV_MISS)
			nf_filled(c, ev.object, ev.off, NF_PAGE);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const uint32_t objects[] = { 1, 2, 9 };
	static uint8_t pages[3][8];
	size_t len = nf_journal_size(SLOTS), image_len;
	struct input in = { data, size };
	uint8_t *mem = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	uint8_t *image = make_image(&in, &image_len);
	struct nf_transport *t;
	struct nf_core *c;
	uint32_t id, step, directories[64] = { 0 };
	uint16_t kinds[64] = { 0 };
	int device[2], file = memfd_create("fuzz", MFD_CLOEXEC);

	MUST(file >= 0 && ftruncate(file, OBJECT_SIZE) == 0);
	MUST(mem != MAP_FAILED && nf_journal_format(mem, len, SLOTS) == 0);
	c = nf_core_new(mem, len, NF_NO_URING);
	MUST(c);
	t = transport_of(c, &nf_fuse);
	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, device) == 0);
	memset(pages, 0, sizeof(pages));
	for (id = 1; id <= 2; id++)
		MUST(nf_object_add(c, id, 0, 0, file, OBJECT_SIZE - id, pages[id], 0) == 0);
	if (nf_core_attach_fuse_tree(c, 1, device[0], image, image_len, objects, 3) == 0)
		for (step = 0; step < STEPS && in.len; step++) {
			send_message(&in, device[1]);
			t->ops->drain(t, 4);
			take_events(c);
			take_fuse_answers(device[1]);
		}
	nf_files_of(image, image_len, 0, 64, directories, kinds);
	for (step = 0; step < 64; step++)
		MUST(kinds[step] || !directories[step]);
	for (id = 1; id <= 2; id++)
		MUST(nf_object_remove(c, id) == 0);
	nf_core_free(c);
	free(image);
	close(device[0]);
	close(device[1]);
	close(file);
	munmap(mem, len);
	return 0;
}
