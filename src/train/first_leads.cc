#include "train/first_leads.h"

namespace qiao::train {

void first_leads(const Ranks* ranks, const Decoder& decoder, const std::function<void()>& body) {
  if (ranks == nullptr || ranks->group().size() == 1) return body();
  if (!ranks->leads_group()) return decoder.follow();
  decoder.lead();
  body();
  decoder.let_go();
}

}  // namespace qiao::train
