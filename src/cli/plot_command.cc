#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <map>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/subprocess.h"
#include "cli/commands.h"

namespace qiao::cli {
namespace {

namespace fs = std::filesystem;

struct PlotFlags {
  std::vector<fs::path> runs;
  fs::path out = "curves.svg";
  std::vector<std::string> metrics = {"loss"};
  double smooth = 0;
};

struct Curve {
  std::string name;
  std::vector<std::pair<double, double>> points;  // step, value
};

// One metric of a run, as its metrics.jsonl has it.
Curve read_curve(const fs::path& run, const std::string& metric, double smooth) {
  const fs::path path = fs::is_directory(run) ? run / "metrics.jsonl" : run;
  const std::string text = read_file(path, size_t{4} << 30);
  Curve curve;
  curve.name = (run.has_filename() ? run : run.parent_path()).filename().string();
  std::string known;
  double mean = 0, weight = 0;  // as TensorBoard smooths: an exponential mean, corrected for its beginning
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line(text.data() + begin, end - begin);
    const bool is_torn = end == text.size();
    begin = end + 1;
    if (is_torn) break;  // a run is writing it
    const Json row = parse_json(line, path.string());
    if (!row.is_object() || !row.contains("step") || !row["step"].is_number()) continue;
    if (!row.contains(metric) || !row[metric].is_number()) {
      if (known.empty())
        for (const auto& [key, value] : row.items())
          if (key != "step" && value.is_number()) known += (known.empty() ? "" : ", ") + key;
      continue;
    }
    const double value = row[metric].get<double>();
    mean = smooth * mean + (1 - smooth) * value;
    weight = smooth * weight + (1 - smooth);
    curve.points.emplace_back(row["step"].get<double>(), mean / weight);
  }
  if (curve.points.empty()) {
    throw_error(ErrorKind::kInvalidInput, "{}: no step has {}{}", path.string(), metric,
                known.empty() ? "" : fmt::format("; {} was expected", known));
  }
  return curve;
}

// In single quotes, in which gnuplot runs no commands.
std::string gnuplot_text(std::string_view text) {
  std::string made = "'";
  for (const char c : text) {
    if (c == '\'') made += c;
    if (static_cast<unsigned char>(c) >= 0x20) made += c;
  }
  return made + '\'';
}

// Folders of one name are told apart by the paths as they were given.
void name_apart(std::vector<Curve>& curves, const std::vector<fs::path>& runs) {
  std::map<std::string, int> uses;
  for (const Curve& curve : curves) ++uses[curve.name];
  for (size_t i = 0; i < curves.size(); ++i)
    if (uses[curves[i].name] > 1) curves[i].name = runs[i].string();
}

// A panel a metric, all runs in each, in the same colours.
std::string gnuplot_script(const std::vector<std::vector<Curve>>& panels, const PlotFlags& flags,
                           const fs::path& out) {
  const bool is_png = out.extension() == ".png";
  const size_t height = 420 * panels.size() + 20;
  std::string script = fmt::format(
      "set terminal {} size 900,{} {} font 'sans,12' noenhanced\n"
      "set output {}\n"
      "set multiplot layout {},1\n"
      "set grid linetype 1 linewidth 0.5 linecolor rgb '#dddddd'\nset border 3\nset tics nomirror\nset "
      "xlabel 'step'\n"
      "set key outside above left horizontal\nset autoscale xfix\nset style data lines\nset lmargin 12\nset "
      "format y '%.4g'\n",
      is_png ? "pngcairo" : "svg", height, is_png ? "background rgb 'white'" : "background 'white'",
      gnuplot_text(out.string()), panels.size());
  for (size_t panel = 0; panel < panels.size(); ++panel) {
    const std::vector<Curve>& curves = panels[panel];
    for (size_t i = 0; i < curves.size(); ++i) {
      script += fmt::format("$data{}_{} << EOD\n", panel, i);
      for (const auto& [step, value] : curves[i].points)
        if (std::isfinite(value)) script += fmt::format("{:.10g} {:.10g}\n", step, value);
      script += "EOD\n";
    }
    script += fmt::format("set ylabel {}\nplot ", gnuplot_text(flags.metrics[panel]));
    for (size_t i = 0; i < curves.size(); ++i) {
      const double width = 2 + 2.5 * std::min<double>(curves.size() - 1 - i, 3);  // seen below an equal curve
      script += fmt::format("{}$data{}_{} using 1:2 linewidth {:g} linetype {} title {}", i == 0 ? "" : ", ",
                            panel, i, width, i + 1, gnuplot_text(curves[i].name));
    }
    script += "\n";
  }
  return script + "unset multiplot\nset output\n";
}

// The picture is put in its place when it is whole.
void draw(const std::vector<std::vector<Curve>>& panels, const PlotFlags& flags) {
  const std::string stem = fmt::format("{}.tmp.{}", flags.out.string(), ::getpid());
  const fs::path picture = stem + flags.out.extension().string(), script = stem + ".gnuplot";
  write_file_atomically(script, gnuplot_script(panels, flags, picture));
  SubprocessResult result;
  std::error_code error;
  try {
    result = run_subprocess({"gnuplot", script.string()});
  } catch (...) {
    fs::remove(script, error);
    throw;
  }
  fs::remove(script, error);
  if (result.exit_code == 0) fs::rename(picture, flags.out, error);
  if (result.exit_code == 0 && !error) return;
  std::error_code ignored;
  fs::remove(picture, ignored);
  if (result.not_found) {
    throw_error(ErrorKind::kNotFound,
                "gnuplot draws the curves and is not here; on Debian: apt-get install gnuplot-nox");
  }
  throw_error(ErrorKind::kIo, "{}: cannot draw: {}", flags.out.string(),
              error ? error.message() : result.output);
}

void plot(const PlotFlags& flags) {
  const std::string kind = flags.out.extension().string();
  if (kind != ".svg" && kind != ".png")
    throw_error(ErrorKind::kInvalidInput, "--out is {}; a name ending in .svg or .png was expected",
                flags.out.string());
  if (!(flags.smooth >= 0 && flags.smooth < 1))
    throw_error(ErrorKind::kInvalidInput, "--smooth is {}; a number from 0 to below 1 was expected",
                flags.smooth);
  std::vector<std::vector<Curve>> panels;
  for (const std::string& metric : flags.metrics) {
    panels.emplace_back();
    for (const fs::path& run : flags.runs) panels.back().push_back(read_curve(run, metric, flags.smooth));
    name_apart(panels.back(), flags.runs);
  }
  draw(panels, flags);
  std::fputs(fmt::format("{}\n", flags.out.string()).c_str(), stdout);
}

}  // namespace

void add_plot_command(CLI::App& app) {
  const auto flags = std::make_shared<PlotFlags>();
  CLI::App* command = app.add_subcommand("plot", "Draw the curves of training runs beside each other");
  command->add_option("RUN", flags->runs, "Folders of runs, or their metrics.jsonl")->required();
  command->add_option("-o,--out", flags->out, "Picture to write: *.svg or *.png [curves.svg]")
      ->type_name("FILE");
  command
      ->add_option("--metric", flags->metrics,
                   "What to draw, a panel each: loss, grad_norm, lr, tokens_per_second, … [loss]")
      ->delimiter(',')
      ->type_name("NAME");
  command
      ->add_option("--smooth", flags->smooth,
                   "Weight of what came before in an exponential mean, from 0 to below 1 [0]")
      ->type_name("X");
  command->footer(
      "Examples:\n"
      "  qiao plot RUN\n"
      "  qiao plot RUN-1 RUN-2 --metric loss,grad_norm --smooth 0.9 --out curves.png");
  command->callback([flags] { plot(*flags); });
}

}  // namespace qiao::cli
