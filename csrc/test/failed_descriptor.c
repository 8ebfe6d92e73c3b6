/* A descriptor that fails is told to Python, not in a tight loop, and is tried again. */
#include "fake.h"

#include <sys/socket.h>

int main(void)
{
	struct rig r;
	struct nf_event ev[64];
	uint8_t *pages;
	int fd;

	rig_new(&r, 8, 0);
	pages = rig_object(&r, 1, NF_PAGE, true, &fd);
	CHECK(nf_core_start(r.core) == 0);
	CHECK(send(r.kernel, "odd", 3, 0) == 3);
	CHECK(event_within(&r, PATIENCE_MS).type == NF_EV_BROKEN);
	ask(&r, 5, 1, 0, NF_PAGE);
	CHECK(answer_within(&r, PATIENCE_MS).unique == 5);
	CHECK(shutdown(r.kernel, SHUT_RDWR) == 0);	/* from now on each read is at its end */
	CHECK(event_within(&r, PATIENCE_MS).type == NF_EV_BROKEN);
	usleep(300000);
	CHECK(nf_core_next(r.core, ev, 64, 0) <= 2);
	rig_free(&r);
	free(pages);
	return 0;
}
