/* Threads that help with work which another thread has begun.  Knows nothing else of the core. */
#ifndef NF_CREW_H
#define NF_CREW_H

#include <pthread.h>
#include <stdbool.h>

#include "base.h"

#define NF_CREW_IDLE_S 10	/* a helper without work ends after so long */

/* On the stack of whoever shares it. */
struct nf_work {
	/* Take parts of it until none is left; any number of threads at once. */
	void (*help)(struct nf_work *w);
	uint32_t helpers;
	bool offered;
	struct nf_work *next;
};

struct nf_crew {
	pthread_mutex_t lock;	/* nothing is locked under it */
	pthread_cond_t came;	/* work, or the end */
	pthread_cond_t left;	/* a helper its work, or the crew */
	struct nf_work *first;
	uint32_t threads, idle, most;
	bool ending;
};

void nf_crew_init(struct nf_crew *c, uint32_t most);
/* Nobody shares anything any more. */
void nf_crew_destroy(struct nf_crew *c);
/* Let `w` be helped with while `mine` runs, which takes parts too; returns when all have done theirs. */
void nf_crew_share(struct nf_crew *c, struct nf_work *w, void (*mine)(struct nf_work *w));

#endif
